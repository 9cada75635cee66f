"""One pretraining run from its config: build from the census, train, evaluate, write the model folder."""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.console import Console

from ..data_pipelines.collection import Collection
from ..data_pipelines.shards import write_atomically
from ..model_zoo.package import ModelRecord, TrainingData, save_model
from ..model_zoo.potential import Potential
from .adaptive import AdaptiveWeights
from .callbacks import Callback, Checkpoints, Metrics, ProgressBar, Validation
from .checkpoints import load_checkpoint, seed_everything, whole_checkpoints
from .config import PretrainConfig
from .engine import DeepSpeedEngine, start_distributed
from .evaluation import predict, summarise, with_a_head
from .start import build_potential
from .train import Trainer


def pretrain(config: PretrainConfig, resume: bool = False, quiet: bool = False) -> Path | None:
    """Run (or resume) a pretraining; returns the model folder, or None when a signal stopped it early.

    Every rank calls this; files are written by rank 0, except each rank's part of a checkpoint.
    """
    data = config.open_data()
    if config.adaptive.rate > 0 and not data.num_structures("valid"):
        raise ValueError(f"{data}: holds no validation structure for adaptive.rate: convert it with valid_share")
    if not data.num_structures("test") + data.num_structures("valid"):
        raise ValueError(f"{data}: holds no structure to test on: convert it with test_share above 0")
    out, start_step = Path(config.out), 0
    if not resume and (whole := whole_checkpoints(out / "checkpoints")):
        raise ValueError(f"{out}: holds a run saved at {whole[-1].name}: add --resume to go on, or name another folder")
    start_distributed()
    seed_everything(config.seed)
    potential = build_potential(config, data)
    engine = DeepSpeedEngine(potential, config.engine)
    stream = data.stream(
        config.stream,
        config.mixing,
        cutoff=config.model.cutoff,
        levels_of_theory=potential.config.levels_of_theory,
        rank=engine.rank,
        world_size=engine.world_size,
    )
    states: list[dict[str, Any]] = []
    if resume:
        start_step, states = load_checkpoint(out / "checkpoints", engine)
    console = Console(quiet=quiet or engine.rank != 0, highlight=False)
    callbacks = _callbacks(config, data, potential, console, engine.rank, start_step)
    trainer = Trainer(engine, stream, config.loss, config.engine, config.max_steps, callbacks, start_step)
    if states:
        trainer.load_state(states)
    started = time.perf_counter()
    finished = trainer.fit()
    dist.barrier()
    if not finished:
        console.print(f"stopped at step {trainer.step}, saved; go on with: evenfield pretrain ... --resume")
        return None
    if engine.rank == 0:
        _write_results(config, data, potential, time.perf_counter() - started, progress=not quiet)
    dist.barrier()
    return out / "model"


def _callbacks(
    config: PretrainConfig, data: Collection, potential: Potential, console: Console, rank: int, start_step: int
) -> list[Callback]:
    out = Path(config.out)
    callbacks: list[Callback] = []
    validation = None
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        metrics = Metrics(out / "metrics.jsonl", start_step)
        every, limit = config.evaluate_every, config.evaluate_structures
        validation = Validation(potential, data, metrics, console, every, limit)
        watched = [validation] if data.num_structures("valid") else []
        callbacks += [*watched, metrics, ProgressBar(console, config.max_steps, start_step)]
    if config.adaptive.rate > 0:
        callbacks.append(AdaptiveWeights(config.adaptive, validation, config.evaluate_every))
    # last, so that a kill after a checkpoint finds the rows of its step written
    return [*callbacks, Checkpoints(out / "checkpoints", config.checkpoints)]


def _write_results(
    config: PretrainConfig, data: Collection, potential: Potential, seconds: float, progress: bool
) -> None:
    out, census = Path(config.out), data.census()
    counts = {symbol: row["structures"].get("train", 0) for symbol, row in census["per_element"].items()}
    split = "test" if data.num_structures("test") else "valid"
    structures = with_a_head(potential, data.structures(split))
    predictions = predict(potential, structures, progress=progress)
    predictions.save(out / "predictions.npz")
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
    packages = ("evenfield", "torch", "e3nn", "deepspeed", "torch-geometric", "ase")
    settings = config.model_dump(mode="json", exclude={"data", "out"})  # paths are nobody's business
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
        versions={name: importlib.metadata.version(name) for name in packages},
    )
