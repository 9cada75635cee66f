"""One pretraining run from its config: build, train, evaluate, write the model folder."""

from __future__ import annotations

import importlib.metadata
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.console import Console

from ..core.errors import EvenfieldError
from ..core.files import file_errors, write_atomically
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
from .callbacks.callback import Callback
from .callbacks.guards import CollapseGuard, SpikeRollback, Watchdog
from .callbacks.metrics import Metrics, ProgressBar, TensorBoard, WeightsAndBiases
from .callbacks.saving import Checkpoints
from .callbacks.validation import LearnedNoise, Validation
from .checkpoints.checkpoints import seed_everything
from .checkpoints.resume import Resume, fingerprint, refuse_second_run, sole_writer, take_up
from .config import PretrainConfig
from .errors import TrainingError
from .initial_potential import build_potential
from .loop.engine import DeepSpeedEngine
from .loop.schedule import Schedule
from .loop.signals import StopRequest, listening
from .loop.train_module import TrainModule
from .loop.trainer import Trainer
from .streams import open_stream, padded_shape_of


PACKAGES = ("evenfield", "torch", "e3nn", "deepspeed", "torch-geometric", "ase")


def pretrain(
    config: PretrainConfig,
    resume: Resume = "no",
    quiet: bool = False,
    stop: StopRequest | None = None,
) -> Path | None:
    """Run a pretraining; returns the model folder, or None when a signal stopped it early.

    Every rank calls this; rank 0 writes the files.

    resume: "auto" resumes from the newest whole checkpoint if there is one, "must" raises if there
    is none.
    stop: where signals are noted, for a caller that listens to them already.

    Raises EvenfieldError for data without what the run needs, ResumeError for a checkpoint that
    does not fit, TrainingError when training cannot continue.
    """
    data = config.open_data()
    _check_splits(config, data)
    if resume == "no":
        refuse_second_run(Path(config.out))
    stop = stop or StopRequest()
    with listening(stop):
        start_distributed()
        with sole_writer(Path(config.out)) if dist.get_rank() == 0 else nullcontext():
            return _run(config, data, resume, quiet, stop)


def _check_splits(config: PretrainConfig, data: Collection) -> None:
    """Before anything is computed: a run that cannot be judged must not take hours first."""
    if config.adaptive.rate > 0 and not data.num_structures("valid"):
        raise EvenfieldError(
            "holds no validation structure for adaptive.rate",
            remedy="convert it with valid_share above 0",
            file=str(data),
        )
    if not data.num_structures("test") + data.num_structures("valid"):
        raise EvenfieldError(
            "holds no structure to test on",
            remedy="convert it with test_share above 0",
            file=str(data),
        )


def _check_level(default_level: str, levels: list[str]) -> None:
    if default_level not in levels:
        raise EvenfieldError(
            f"default_level={default_level}: no training structure has this level of theory",
            remedy=f"choose one of {', '.join(levels)}",
        )


def _run(
    config: PretrainConfig, data: Collection, resume: Resume, quiet: bool, stop: StopRequest
) -> Path | None:
    # what is trained, on what, and by what
    seed_everything(config.seed)
    potential = build_potential(config, data)
    levels = potential.config.levels_of_theory
    if config.default_level is not None:
        # before the training, which may take days
        _check_level(config.default_level, levels)
    train_module = TrainModule(potential, config.loss, config.compute.precision)
    engine = DeepSpeedEngine(train_module, config.optimizer, config.engine)
    stream = open_stream(config, data, levels, engine.rank, engine.world_size)

    # resume before anything is written into the run folder
    console = Console(quiet=quiet or engine.rank != 0, highlight=False, soft_wrap=True)
    loaded = take_up(config, data, resume, engine, console)
    start_step = loaded.step if loaded else 0
    if config.compute.compiled:
        _compile(config, data, potential, console)

    parts = _parts(config, data, engine, console, start_step)
    trainer = Trainer(
        engine,
        stream,
        Schedule(config.optimizer.learning_rate, config.schedule),
        config.max_steps,
        parts.callbacks,
        accumulation=config.accumulation,
        start_step=start_step,
        stop=stop,
    )
    if loaded:
        trainer.load_state(loaded.states)
        trainer.load_tensors(loaded.tensors)

    started = time.perf_counter()
    with parts.watchdog.watching():
        finished = trainer.fit()
    dist.barrier()
    if not finished:
        _tell_where_it_stopped(trainer, parts, console)
        return None

    if engine.rank == 0:
        seconds = time.perf_counter() - started
        with trainer.evaluated_weights():
            _write_results(config, data, potential, seconds, progress=not quiet)
    dist.barrier()
    return Path(config.out) / "model"


def _compile(
    config: PretrainConfig, data: Collection, potential: Potential, console: Console
) -> None:
    shape = padded_shape_of(config, data, potential.config.levels_of_theory)
    if shape is None:
        console.print(
            "compute.compiled is left out: batches differ too much in size; a larger "
            "stream.edge_budget helps"
        )
        return
    console.print(
        f"the first step compiles, for some minutes, for batches of up to {shape.num_atoms} atoms"
    )
    compile_for_training(potential, shape)


def _tell_where_it_stopped(trainer: Trainer, parts: _Parts, console: Console) -> None:
    by = f" by {trainer.stop.by}" if trainer.stop.by else ""
    if parts.checkpoints.problem:
        raise TrainingError(
            f"stopped at step {trainer.step}{by}, not saved: {parts.checkpoints.problem}"
        )
    console.print(
        f"stopped at step {trainer.step}{by}, saved; "
        "continue with: evenfield pretrain ... --resume auto"
    )


@dataclass(frozen=True)
class _Parts:
    """The callbacks of a run, in any order, and those of them that the run itself asks."""

    callbacks: list[Callback]
    checkpoints: Checkpoints
    watchdog: Watchdog


def _parts(
    config: PretrainConfig,
    data: Collection,
    engine: DeepSpeedEngine,
    console: Console,
    start_step: int,
) -> _Parts:
    out = Path(config.out)
    folder = out / "checkpoints"
    about = {
        "config": config.saved(),
        "data": fingerprint(data),
        "versions": _versions(),
    }
    watchdog = Watchdog(out, engine.rank, config.guards.hang_minutes)
    checkpoints = Checkpoints(folder, config.checkpoints, console.print, about)

    # on every rank
    train_module = engine.train_module
    callbacks: list[Callback] = [
        CollapseGuard(train_module.potential),
        watchdog,
        checkpoints,
    ]
    if config.guards.spike:
        callbacks.append(SpikeRollback(folder, config.guards.spike))
    if config.adaptive.rate > 0:
        callbacks.append(AdaptiveWeights(config.adaptive, train_module, config.evaluate_every))

    if engine.rank == 0:
        with file_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_atomically(out / "config.yaml", settings)
        callbacks += _callbacks_of_rank_0(config, data, train_module, console, start_step)
    return _Parts(callbacks, checkpoints, watchdog)


def _callbacks_of_rank_0(
    config: PretrainConfig,
    data: Collection,
    train_module: TrainModule,
    console: Console,
    start_step: int,
) -> list[Callback]:
    """Averages, validation, and everything that writes figures."""
    out = Path(config.out)
    potential = train_module.potential
    callbacks: list[Callback] = [
        Metrics(out / "metrics.jsonl", start_step, console),
        ProgressBar(console, config.max_steps, start_step),
    ]
    if config.average.decay:
        callbacks.append(WeightAverage(potential, config.average))
    if data.num_structures("valid"):
        every = config.evaluate_every
        limit = config.evaluate_structures
        callbacks.append(Validation(potential, data, console, every, limit))
    if train_module.noise is not None and train_module.noise.learned:
        callbacks.append(LearnedNoise(train_module.noise, config.evaluate_every))
    if config.logging.tensorboard:
        callbacks.append(TensorBoard(out / "tensorboard", start_step))
    if config.logging.wandb_project:
        settings = config.model_dump(mode="json")
        callbacks.append(WeightsAndBiases(out, config.logging.wandb_project, settings))
    return callbacks


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _write_results(
    config: PretrainConfig, data: Collection, potential: Potential, seconds: float, progress: bool
) -> None:
    out = Path(config.out)
    census = data.census()
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
    return ModelRecord(
        name=Path(config.out).name,
        licence=config.licence,
        elements={level: list(levels[level]["e0"]) for level in potential.config.levels_of_theory},
        default_level=config.default_level,
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
            "config": config.saved(),
            "seconds": round(seconds, 1),
            "ranks": dist.get_world_size(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        versions=_versions(),
    )
