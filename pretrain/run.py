"""One pretraining run from its config: build from the census, train, evaluate, write the model folder."""

from __future__ import annotations

import importlib.metadata
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.console import Console

from ..core.files import write_atomically
from ..core.ranks import start_distributed
from ..data_pipelines.stream.collection import Collection
from ..model_zoo.compile.compiled import compile_for_training
from ..model_zoo.evaluation.evaluation import predict, with_a_head
from ..model_zoo.evaluation.summary import summarise
from ..model_zoo.package.folder import save_model
from ..model_zoo.package.record import ModelRecord, TrainingData
from ..model_zoo.potential.potential import Potential
from .callbacks.adaptive import AdaptiveWeights
from .callbacks.average import WeightAverage
from .callbacks.callback import Callback, Checkpoints, NoiseFigures, Validation
from .callbacks.guards import CollapseGuard, SpikeRollback, Watchdog
from .callbacks.metrics import Metrics, ProgressBar, TensorBoard, WeightsAndBiases
from .checkpoints.checkpoints import seed_everything
from .checkpoints.resume import Resume, refuse_second_run, sole_writer, take_up
from .config import PretrainConfig
from .initial_potential import build_potential
from .loop.engine import DeepSpeedEngine
from .loop.noise import noise_of
from .loop.signals import StopRequest, listening
from .loop.trainer import Trainer, TrainingError
from .streams import open_stream, padded_shape_of


PACKAGES = ("evenfield", "torch", "e3nn", "deepspeed", "torch-geometric", "ase")


def pretrain(
    config: PretrainConfig,
    resume: Resume = "no",
    quiet: bool = False,
    stop: StopRequest | None = None,
) -> Path | None:
    """Run a pretraining; returns the model folder, or None when a signal stopped it early.

    resume: "auto" goes on from the newest whole checkpoint if there is one, "must" raises if there is none.
    stop: what signals are noted in, for a caller that listens already.
    Every rank calls this; files are written by rank 0.
    """
    data = config.open_data()
    if config.adaptive.rate > 0 and not data.num_structures("valid"):
        raise ValueError(
            f"{data}: holds no validation structure for adaptive.rate: convert it with valid_share"
        )
    if not data.num_structures("test") + data.num_structures("valid"):
        raise ValueError(
            f"{data}: holds no structure to test on: convert it with test_share above 0"
        )
    if resume == "no":
        refuse_second_run(Path(config.out))
    stop = stop or StopRequest()
    with listening(stop):
        start_distributed()
        with sole_writer(Path(config.out)) if dist.get_rank() == 0 else nullcontext():
            return _run(config, data, resume, quiet, stop)


def _run(
    config: PretrainConfig, data: Collection, resume: Resume, quiet: bool, stop: StopRequest
) -> Path | None:
    seed_everything(config.seed)
    potential = build_potential(config, data)
    noise = noise_of(config.loss, potential.config.levels_of_theory)
    engine = DeepSpeedEngine(potential, config.engine, noise=noise)
    stream = open_stream(
        config, data, potential.config.levels_of_theory, engine.rank, engine.world_size
    )
    console = Console(quiet=quiet or engine.rank != 0, highlight=False, soft_wrap=True)
    loaded = take_up(config, resume, engine, console)
    if config.engine.compiled:
        _compile(config, data, potential, console)
    start_step = loaded.step if loaded else 0
    parts = _parts(config, data, engine, console, start_step)
    trainer = Trainer(
        engine,
        stream,
        config.loss,
        config.engine,
        config.max_steps,
        parts.callbacks,
        start_step,
        stop,
    )
    if loaded:
        trainer.load_state(loaded.states)
        if parts.average:
            parts.average.load_tensors(loaded.average)
    started = time.perf_counter()
    with parts.watchdog.watching():
        finished = trainer.fit()
    dist.barrier()
    if not finished:
        _tell_where_it_stopped(trainer, parts, console)
        return None
    if engine.rank == 0:
        averaged: AbstractContextManager[None] = (
            parts.average.applied() if parts.average else nullcontext()
        )
        with averaged:
            _write_results(
                config, data, potential, time.perf_counter() - started, progress=not quiet
            )
    dist.barrier()
    return Path(config.out) / "model"


def _compile(
    config: PretrainConfig, data: Collection, potential: Potential, console: Console
) -> None:
    frame = padded_shape_of(config, data, potential.config.levels_of_theory)
    if frame is None:
        console.print(
            "engine.compiled is left out: batches differ too much in size; a larger stream.edge_budget helps"
        )
        return
    console.print(
        f"the first step compiles, for some minutes, for batches of up to {frame.num_atoms} atoms"
    )
    compile_for_training(potential, frame)


def _tell_where_it_stopped(trainer: Trainer, parts: _Parts, console: Console) -> None:
    by = f" by {trainer.stop.by}" if trainer.stop.by else ""
    if parts.checkpoints.problem:
        raise TrainingError(
            f"stopped at step {trainer.step}{by}, not saved: {parts.checkpoints.problem}"
        )
    console.print(
        f"stopped at step {trainer.step}{by}, saved; go on with: evenfield pretrain ... --resume auto"
    )


@dataclass(frozen=True)
class _Parts:
    """The callbacks of a run, and those of them that the run itself asks."""

    callbacks: list[Callback]
    checkpoints: Checkpoints
    watchdog: Watchdog
    average: WeightAverage | None


def _parts(
    config: PretrainConfig,
    data: Collection,
    engine: DeepSpeedEngine,
    console: Console,
    start_step: int,
) -> _Parts:
    out, potential, rank = Path(config.out), engine.potential, engine.rank
    folder = out / "checkpoints"
    average = (
        WeightAverage(potential, config.average) if config.average.decay and rank == 0 else None
    )
    watchdog = Watchdog(out, rank, config.guards.hang_minutes)
    callbacks: list[Callback] = [CollapseGuard(potential)]
    callbacks += [average] if average else []
    if config.guards.spike:
        callbacks.append(SpikeRollback(folder, config.guards.spike, average))
    validation = None
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        )
        metrics = Metrics(out / "metrics.jsonl", start_step, console)
        every, limit = config.evaluate_every, config.evaluate_structures
        validation = Validation(potential, data, metrics, console, every, limit, average)
        watched: list[Callback] = [validation] if data.num_structures("valid") else []
        learned = engine.noise if engine.noise and engine.noise.learned else None
        watched += [NoiseFigures(learned, metrics, every)] if learned else []
        callbacks += [*watched, metrics, ProgressBar(console, config.max_steps, start_step)]
        callbacks += _loggers(config, start_step)
    if config.adaptive.rate > 0:
        callbacks.append(AdaptiveWeights(config.adaptive, validation, config.evaluate_every))
    about = {
        "config": config.model_dump(mode="json", exclude={"data", "out"}),
        "versions": _versions(),
    }
    # last, so that a kill after a checkpoint finds the rows of its step written
    checkpoints = Checkpoints(folder, config.checkpoints, console.print, average, about)
    return _Parts([*callbacks, watchdog, checkpoints], checkpoints, watchdog, average)


def _loggers(config: PretrainConfig, start_step: int) -> list[Callback]:
    out, loggers = Path(config.out), config.logging
    callbacks: list[Callback] = (
        [TensorBoard(out / "tensorboard", start_step)] if loggers.tensorboard else []
    )
    if loggers.wandb_project:
        callbacks.append(
            WeightsAndBiases(out, loggers.wandb_project, config.model_dump(mode="json"))
        )
    return callbacks


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _write_results(
    config: PretrainConfig, data: Collection, potential: Potential, seconds: float, progress: bool
) -> None:
    out, census = Path(config.out), data.census()
    counts = {
        symbol: row["structures"].get("train", 0) for symbol, row in census["per_element"].items()
    }
    split = "test" if data.num_structures("test") else "valid"
    structures = with_a_head(potential, data.structures(split))
    predictions = predict(potential, structures, progress=progress)
    predictions.parity().save(out / "predictions.npz")
    evaluation = summarise(predictions, split, counts)
    record = _record(config, data, potential, census, counts, seconds)
    save_model(out / "model", potential, record, evaluation, predictions=predictions)
    write_atomically(out / "evaluation.json", (out / "model" / "evaluation.json").read_bytes())


def _record(
    config: PretrainConfig,
    data: Collection,
    potential: Potential,
    census: dict[str, Any],
    counts: dict[str, int],
    seconds: float,
) -> ModelRecord:
    levels = census["levels_of_theory"]
    settings = config.model_dump(
        mode="json", exclude={"data", "out"}
    )  # paths are nobody's business
    return ModelRecord(
        name=Path(config.out).name,
        licence=config.licence,
        elements={level: list(levels[level]["e0"]) for level in potential.config.levels_of_theory},
        train_counts={symbol: count for symbol, count in counts.items() if count},
        training_data=[
            TrainingData(
                name=info["source"]["file"],
                sha256=info["source"]["sha256"],
                licence=info["licence"],
                description=info["description"],
                num_structures=info["num_structures"]["train"],
            )
            for info in data.infos
        ],
        training={
            "config": settings,
            "seconds": round(seconds, 1),
            "ranks": dist.get_world_size(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        versions=_versions(),
    )
