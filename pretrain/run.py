"""A pretraining run from its config: build, train, evaluate, write the model folder."""

from __future__ import annotations

import importlib.metadata
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from ..core.files import file_errors, write_atomically
from ..core.ranks import start_distributed
from ..core.rich_console import Console
from ..core.torch_modes import own_modes
from ..data_pipelines.stream.collection import Collection
from ..model_zoo.compile.compiled import compile_for_training
from ..model_zoo.evaluation.coverage import Coverage
from ..model_zoo.evaluation.evaluation import predict
from ..model_zoo.evaluation.summary import summarise
from ..model_zoo.hub.load import load
from ..model_zoo.package.domain_record import domain_file
from ..model_zoo.package.folder import save_model
from ..model_zoo.package.record import ModelRecord, TrainingData, notes_on_known_sources
from ..model_zoo.package.weights import refuse_unusable_weights
from ..model_zoo.potential.potential import Potential
from .callbacks.adaptive import AdaptiveWeights
from .callbacks.average import WeightAverage
from .callbacks.callback import Callback
from .callbacks.guards import CollapseGuard, SpikeRollback, Watchdog
from .callbacks.metrics import Metrics, ProgressBar, TensorBoard, WeightsAndBiases
from .callbacks.saving import Checkpoints
from .callbacks.validation import LearnedNoise, Validation, spread_structures
from .checkpoints.checkpoints import seed_everything
from .checkpoints.new_heads import filled_up
from .checkpoints.resume import look_for_run, notes_on_levels, take_up
from .checkpoints.run_data import KeptHeads, RunData, trained_levels
from .checkpoints.run_folder import Resume, refuse_occupied, run_set_aside, sole_writer
from .config import PretrainConfig
from .data_checks import (
    check_data,
    counts_of_levels,
    held_out_split,
    notes_on_data,
)
from .errors import TrainingError
from .initial_potential import build_potential
from .loop.element_sharing import share_elements
from .loop.engine import DeepSpeedEngine
from .loop.level_sharing import share_readouts
from .loop.schedule import Schedule
from .loop.signals import StopRequest, listening
from .loop.train_module import TrainModule
from .loop.trainer import Trainer
from .start_from import Start, StartRecord
from .streams import open_stream, padded_shape_of


# structures per level that are compared with the heads when the data of a run are new
STRUCTURES_OF_A_LEVEL = 32
PACKAGES = ("evenfield", "torch", "e3nn", "deepspeed", "torch-geometric", "ase")


@own_modes()
def pretrain(
    config: PretrainConfig,
    resume: Resume = "no",
    quiet: bool = False,
    stop: StopRequest | None = None,
    *,
    overwrite: bool = False,
    changed_data: bool = False,
) -> Path | None:
    """Run a pretraining; returns the model folder, or None if a signal stopped the run early.

    Every rank calls this function; rank 0 writes the files.

    resume: "auto" resumes from the newest intact checkpoint if there is one; "must" raises if there
        is none. Both raise if all checkpoints are damaged.
    quiet: print nothing.
    stop: where stop requests are recorded, for a caller that already listens to signals.
    overwrite: whether a new run may replace what evenfield wrote into the run folder.
    changed_data: whether a resumed run may continue with data that have grown or changed.

    Raises EvenfieldError for unsuitable data, DestinationError for an occupied run folder,
    NoCheckpointError without an intact checkpoint, ResumeError for a checkpoint that does not fit,
    and TrainingError if training cannot continue.
    """
    # all refusals come before anything is computed or written
    data = config.open_data()
    check_data(config, data)
    start = _start_of(config, data) if resume == "no" else None
    refuse_occupied(config, data, resume, overwrite=overwrite)

    stop = stop or StopRequest()
    with listening(stop), ExitStack() as held:
        start_distributed()
        # All ranks must finish the checks above before rank 0 writes. `start_distributed` waits for
        # the others only at the first start in a process.
        dist.barrier()
        rank = dist.get_rank()
        console = Console(quiet=quiet or rank != 0, soft_wrap=True)
        if rank == 0:
            out = Path(config.out)
            held.enter_context(run_set_aside(out, console, overwrite=overwrite))
            held.enter_context(sole_writer(out))
        return _run(config, data, start, resume, console, stop, changed_data)


def _start_of(config: PretrainConfig, data: Collection) -> Start | None:
    """Load the model that a new run starts from, and check it against settings and data.

    None without `start_from`.
    """
    if config.start_from is None:
        return None
    start = Start(load(config.start_from))
    start.check(config.model, data)
    start.check_levels(trained_levels(data), str(data))
    return start


def _run(
    config: PretrainConfig,
    data: Collection,
    start: Start | None,
    resume: Resume,
    console: Console,
    stop: StopRequest,
    changed_data: bool,
) -> Path | None:
    for note in notes_on_data(data):
        console.print(note)
    # before the potential is built, because its heads must have the order of the checkpoint
    begun = look_for_run(config, data, resume, console, changed_data=changed_data)

    # what is trained, on what, and by what
    seed_everything(config.seed)
    kept: KeptHeads | None = None
    start_record: StartRecord | None = None
    if begun:
        # from the checkpoint, because the model that the run started from may be gone by now
        kept = begun.kept
        start_record = StartRecord.from_dict(begun.start) if begun.start else None
    else:
        start = start or _start_of(config, data)
    if start:
        kept = start.kept
        start_record = start.record
    potential = build_potential(config, data, kept)
    share_readouts(potential, config.level_sharing)
    share_elements(potential, config.element_sharing)
    run_data = RunData.of(data)
    if begun:
        run_data = run_data.after(begun.data_before)
    if start:
        _begin_with(start, config, data, run_data, potential, console)
    levels = potential.config.levels_of_theory
    train_module = TrainModule(potential, config.loss, config.compute.precision)
    engine = DeepSpeedEngine(train_module, config.optimizer, config.engine)
    stream = open_stream(config, data, levels, engine.rank, engine.world_size)

    # resume before anything is written into the run folder
    loaded = take_up(begun, engine, potential, run_data) if begun else None
    if begun and not begun.same_data:
        sample = spread_structures(data, "train", levels, STRUCTURES_OF_A_LEVEL * len(levels))
        for note in notes_on_levels(begun, potential, sample):
            console.print(note)
    start_step = begun.step if begun else 0
    if config.compute.compiled:
        _compile(config, data, potential, console)

    parts = _parts(config, data, run_data, start_record, engine, console, start_step)
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
    if begun and loaded:
        trainer.load_state(loaded.states, same_data=begun.same_data)
        # averaged weights may lack new heads too
        num_saved = len(begun.kept.elements)
        trainer.load_tensors(filled_up(loaded.tensors, trainer.tensors(), num_saved))

    with parts.watchdog.watching():
        finished = trainer.fit()
    dist.barrier()
    if not finished:
        _tell_where_it_stopped(trainer, parts, console)
        return None

    if engine.rank == 0:
        with trainer.evaluated_weights():
            _write_results(config, data, start_record, potential, trainer.seconds, console)
    # while rank 0 writes, no other rank may exit, because that would end all ranks
    dist.barrier()
    return Path(config.out) / "model"


def _begin_with(
    start: Start,
    config: PretrainConfig,
    data: Collection,
    run_data: RunData,
    potential: Potential,
    console: Console,
) -> None:
    """Take over the weights of a finished model, and print notes about its fit to the data."""
    levels = potential.config.levels_of_theory
    notes = start.take_over(potential, config.level_sharing.levels)
    notes += start.left_behind(run_data.elements)
    sources = [info["source"]["sha256"] for info in data.infos]
    notes += notes_on_known_sources(start.model.record, sources)
    sample = spread_structures(data, "train", levels, STRUCTURES_OF_A_LEVEL * len(levels))
    for note in [*notes, *start.notes_on_levels(potential, sample)]:
        console.print(note)


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
    """The callbacks of a run, in any order, and those that the run itself uses directly."""

    callbacks: list[Callback]
    checkpoints: Checkpoints
    watchdog: Watchdog


def _parts(
    config: PretrainConfig,
    data: Collection,
    run_data: RunData,
    start: StartRecord | None,
    engine: DeepSpeedEngine,
    console: Console,
    start_step: int,
) -> _Parts:
    out = Path(config.out)
    folder = out / "checkpoints"
    about = {
        "config": config.saved(),
        "data": run_data.to_dict(),
        "model": KeptHeads.of(engine.train_module.potential, run_data).to_dict(),
        "start": start.to_dict() if start else None,
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
    """Callbacks of rank 0: weight average, validation, and everything that writes metrics."""
    out = Path(config.out)
    potential = train_module.potential
    callbacks: list[Callback] = [
        Metrics(out / "metrics.jsonl", start_step, console),
        ProgressBar(console, config.max_steps, start_step),
    ]
    if config.average.decay:
        callbacks.append(WeightAverage(potential, config.average))
    levels = potential.config.levels_of_theory
    # errors of elements without reference energies would dominate all others
    learned = Coverage(counts_of_levels(data.census(), levels))
    spread = spread_structures(data, "valid", levels, config.evaluate_structures)
    structures = list(learned.answerable(spread))
    if structures:
        callbacks.append(Validation(potential, structures, console, config.evaluate_every))
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
    config: PretrainConfig,
    data: Collection,
    start: StartRecord | None,
    potential: Potential,
    seconds: float,
    console: Console,
) -> None:
    # before the first file, because a failed run must not leave anything that looks like a result
    refuse_unusable_weights(potential)
    out = Path(config.out)
    census = data.census()
    record = _record(config, data, start, potential, census, seconds)

    split = held_out_split(data)
    # a model knows nothing about levels and elements without training structures
    coverage = Coverage(record.learned)
    structures = coverage.answerable(data.structures(split))
    predictions = predict(potential, structures, progress=not console.quiet)
    for sentence in coverage.left_out:
        console.print(f"not evaluated: {sentence}")

    evaluation = summarise(predictions, split, record.train_counts, record.level_counts)
    evaluation.refuse_infinite()
    predictions.parity().save(out / "predictions.npz")
    domains = {level: own for level, own in data.domains().items() if level in record.elements}
    save_model(
        out / "model",
        potential,
        record,
        evaluation,
        attachments=domain_file(domains),
        predictions=predictions,
    )
    with file_errors(out / "evaluation.json"):
        write_atomically(out / "evaluation.json", (out / "model" / "evaluation.json").read_bytes())


def _level_details(data: Collection, levels: list[str]) -> dict[str, str]:
    """The details that the data sets state for the levels of theory of a model."""
    known: dict[str, str] = {}
    for info in data.infos:
        known |= info.get("level_details", {})
    return {level: known[level] for level in levels if level in known}


def _published(config: PretrainConfig) -> dict[str, Any]:
    """The settings to store in a model, without the private path `start_from`.

    The record names the model that the run started from as `base_model`.
    """
    return {key: value for key, value in config.saved().items() if key != "start_from"}


def _record(
    config: PretrainConfig,
    data: Collection,
    start: StartRecord | None,
    potential: Potential,
    census: dict[str, Any],
    seconds: float,
) -> ModelRecord:
    levels = census["levels_of_theory"]
    counts = {
        symbol: row["structures"].get("train", 0) for symbol, row in census["per_element"].items()
    }
    training_data = [
        TrainingData.of_data_set(info, info["num_structures"]["train"]) for info in data.infos
    ]
    if start is not None:
        training_data = start.with_data(training_data)
    return ModelRecord(
        name=Path(config.out).name,
        licence=config.licence,
        elements={level: list(levels[level]["e0"]) for level in potential.config.levels_of_theory},
        default_level=config.default_level,
        level_details=_level_details(data, potential.config.levels_of_theory),
        level_counts=counts_of_levels(census, potential.config.levels_of_theory),
        train_counts={symbol: count for symbol, count in counts.items() if count},
        training_data=training_data,
        training={
            "config": _published(config),
            "seconds": round(seconds, 1),
            "ranks": dist.get_world_size(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        versions=_versions(),
        base_model=start.reference if start else None,
    )
