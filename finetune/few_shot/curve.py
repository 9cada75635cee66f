"""Few-shot curves: errors against the number of structures, for strategies and from scratch.

A cell is one fine-tuning: a number of structures, a seed for drawing them, and a strategy. All
strategies use the same draws. The file is written after every cell, so that an interrupted curve
can be continued. The tasks of a job array can share the cells.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from rich.progress import track

from ...core.destination import DestinationError, check_destination
from ...core.files import file_errors, write_atomically
from ...core.locks import LockedError, held
from ...core.settings import GivenBy, Settings, SettingsError
from ...data_pipelines.convert.convert import ConvertConfig, write_data_set
from ...data_pipelines.store.shards import read_info
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.summary import ErrorSummary, InfiniteErrorsError
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.weights import UnusableWeightsError
from ...pretrain.config import PretrainConfig
from ...pretrain.errors import TrainingError
from ...pretrain.loop.schedule import ScheduleConfig
from ...pretrain.run import pretrain
from ..config import FineTuneConfig
from ..run import finetune
from ..safety.step0 import WrongUnitError
from ..strategies import StrategyName, fewest_to_hold_out
from ..target import Target, draw, open_target
from .results import BASELINE, CURVE_FILE, FewShotCurve, FewShotRow


# Settings that only add cells to a curve. All others change every cell, and so define another
# curve.
LADDER = {"sizes", "seeds", "strategies", "scratch_sizes"}
# The warm-up of a training from scratch takes at most one out of this many steps.
LONGEST_WARMUP = 8


class CurveConfig(Settings):
    """The cells of a curve, and how each of them is computed."""

    sizes: list[Annotated[int, Field(gt=0)]] = Field(
        default=[4, 8, 16, 32], min_length=1, description="numbers of training structures"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0, 1], min_length=1, description="seeds of the draws; errors are their medians"
    )
    strategies: list[StrategyName] = Field(
        default=["refit"],
        description="strategies to compare; [] for training from scratch alone",
    )
    scratch_steps: int = Field(
        default=400, ge=0, description="optimizer steps from scratch; 0 for no such training"
    )
    scratch_sizes: list[Annotated[int, Field(gt=0)]] | None = Field(
        default=None,
        min_length=1,
        description="numbers of structures of training from scratch; by default those of sizes",
    )
    test_structures: int = Field(
        default=200, gt=0, description="most structures of the test split that are evaluated"
    )
    finetune: Annotated[
        FineTuneConfig, GivenBy(strategy="strategies", num_structures="sizes", seed="seeds")
    ] = FineTuneConfig()


class Cell(NamedTuple):
    """One fine-tuning, or one training from scratch, of a curve."""

    num_structures: int
    seed: int
    strategy: str


def few_shot_curve(
    model: LoadedModel,
    data: Path | str,
    out: Path,
    config: CurveConfig,
    *,
    task: tuple[int, int] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> FewShotCurve:
    """Compute the cells that are missing in `out` (fewshot.json), and write it after each cell.

    Rows of the same model, data and settings are kept, even if sizes, seeds or strategies were
    added. A file with other rows is refused; with `overwrite` it is renamed, because its rows may
    have taken hours.

    data: folder of a converted data set.
    task: (k, n) computes only every n-th cell, starting with the k-th, 1 <= k <= n, and writes a
        separate file next to `out`. The call without a task reads the files of all tasks.
    say: is called with one line for each cell.

    Raises DestinationError if the file holds something else, SettingsError if there is nothing to
    compute, EvenfieldError if the data have fewer structures than the largest size, and LockedError
    if another process writes the file.
    """
    own = out if task is None else out.with_name(f"{out.stem}-task{task[0]}of{task[1]}.json")
    refusal = LockedError(
        "another process writes this file, and each would lose the other's rows",
        remedy="wait, or share the work with --task",
        file=own,
    )
    # an existing curve is continued or renamed, so it is not refused here
    check_destination(
        own,
        overwrite=True,
        file_kind=CURVE_FILE,
        inputs=[data],
        elsewhere="name another OUT, such as fewshot.json",
    )
    with held(own.with_name(f".{own.name}.lock"), refusal):
        return _complete(model, data, out, own, config, task, overwrite, say)


def _complete(
    model: LoadedModel,
    data: Path | str,
    out: Path,
    own: Path,
    config: CurveConfig,
    task: tuple[int, int] | None,
    overwrite: bool,
    say: Callable[[str], None],
) -> FewShotCurve:
    cells = _cells(config)
    largest = max(cell.num_structures for cell in cells)
    if task is not None:
        cells = _share(cells, *task)
    draw(data, largest, seed=0)  # refuse sizes that are too large before any computation

    origin = {
        "model": model.reference,
        "data": read_info(data)["source"],
        "config": config.model_dump(mode="json", exclude=LADDER),
    }
    _set_aside(own, origin, overwrite, say)
    # A task reads only its own file, because the other tasks may be writing theirs.
    others = [own] if task is not None else _files_of_tasks(out)
    rows = _rows_of([out, *others], origin)
    done = {_cell_of(row) for row in rows}

    curve = FewShotCurve(target=Path(data).name, force_rms=None, origin=origin, rows=rows)
    todo = [cell for cell in cells if cell not in done]
    for cell in track(todo, "few-shot curve", transient=True):
        for row in _compute(model, data, config, cell):
            # "pretrained" and "step0" are the same for all strategies
            if _cell_of(row) not in done:
                done.add(_cell_of(row))
                rows.append(row)
        say(f"{cell.num_structures} structures, seed {cell.seed}, {cell.strategy}: {rows[-1]}")
        curve = _written(own, curve, rows)
    return _written(own, curve, rows)


def _cells(config: CurveConfig) -> list[Cell]:
    if not config.strategies and not config.scratch_steps:
        raise SettingsError(
            "strategies=[] and scratch_steps=0 leave nothing to compute",
            remedy="name a strategy or set scratch_steps",
        )
    scratch_sizes = config.scratch_sizes or config.sizes
    if not config.scratch_steps:
        scratch_sizes = []

    cells = []
    # from small to large, so that the first results come soon
    for size in sorted({*config.sizes, *scratch_sizes}):
        names = [*config.strategies] if size in config.sizes else []
        if size in scratch_sizes:
            names.append(BASELINE)
        cells += [Cell(size, seed, name) for name in names for seed in config.seeds]
    return cells


def _share(cells: list[Cell], number: int, num_tasks: int) -> list[Cell]:
    """Every `num_tasks`-th cell, starting with the `number`-th, counted from 1.

    Trainings from scratch take longest, and are distributed first, so that no task gets all of
    them.
    """
    dealt = sorted(cells, key=lambda cell: cell.strategy != BASELINE)
    own = set(dealt[number - 1 :: num_tasks])
    return [cell for cell in cells if cell in own]


def _compute(
    model: LoadedModel, data: Path | str, config: CurveConfig, cell: Cell
) -> list[FewShotRow]:
    """The rows of one cell: its strategy, and the stages before it."""
    settings = config.finetune.model_copy(
        update={"num_structures": cell.num_structures, "seed": cell.seed}
    )
    target = open_target(
        data,
        num_structures=cell.num_structures,
        seed=cell.seed,
        valid_share=settings.valid_share,
        fewest_to_hold_out=fewest_to_hold_out(cell.strategy),
        physics=model.potential.config.physics,
    )
    target = replace(target, test=spread(target.test, config.test_structures))

    if cell.strategy == BASELINE:
        errors, seconds = _from_scratch(model, target, config.scratch_steps, cell.seed)
        return [_row(cell, BASELINE, errors, seconds)]

    try:
        result = finetune(model, target, settings.model_copy(update={"strategy": cell.strategy}))
    except (WrongUnitError, TrainingError) as error:
        # the remedies name settings of a fine-tuning, which have the prefix finetune. in a curve
        error.remedy = f"{error.remedy}; settings of the fine-tuning begin with finetune. here"
        raise
    stages = {
        "pretrained": result.stages["pretrained"],
        "step0": result.stages["step0"],
        cell.strategy: result.final,  # under "auto", if that was asked for
    }
    return [_row(cell, name, stage.errors, stage.seconds) for name, stage in stages.items()]


def _row(cell: Cell, name: str, errors: ErrorSummary, seconds: float) -> FewShotRow:
    return FewShotRow(
        num_structures=cell.num_structures,
        strategy=name,
        seed=cell.seed,
        force_mae=errors.force_mae,
        energy_mae_per_atom=errors.energy_mae_per_atom,
        force_rms=errors.force_rms,
        seconds=round(seconds, 2),
    )


def _from_scratch(
    model: LoadedModel, target: Target, steps: int, seed: int
) -> tuple[ErrorSummary, float]:
    """Train with the pretrained model's recipe on the few structures; test errors and seconds."""
    recipe = _recipe_from_scratch(model, steps, seed)
    train = [*target.train, *target.valid]
    parts = [replace(structure, split="train") for structure in train]
    parts += [replace(structure, split="test") for structure in target.test]

    with tempfile.TemporaryDirectory() as folder:
        origin = {"file": "few structures", "sha256": ""}
        write_data_set(parts, Path(folder) / "data", origin, ConvertConfig())
        recipe |= {"data": f"{folder}/data", "out": f"{folder}/scratch"}
        config = PretrainConfig.model_validate(recipe)

        started = time.perf_counter()
        try:
            trained = pretrain(config, quiet=True)
        except (TrainingError, InfiniteErrorsError, UnusableWeightsError) as error:
            # this training uses the model's settings, which cannot be changed for a curve
            error.remedy = (
                "take larger sizes, or leave out the training from scratch with scratch_steps=0"
            )
            raise
        seconds = time.perf_counter() - started
        if trained is None:
            raise KeyboardInterrupt  # a signal stopped the training, and stops the curve
        return ErrorSummary.read(trained / "evaluation.json"), seconds


def _recipe_from_scratch(model: LoadedModel, steps: int, seed: int) -> dict[str, Any]:
    """The settings of the model's pretraining, adapted to few structures and few steps."""
    recipe = dict(model.record.training.get("config", {}))
    # Levels of theory and shares belong to the pretraining corpus. Compiling takes longer than a
    # short run. A run from scratch must not start from the weights of a model.
    for name in ("level_sharing", "mixing", "default_level", "compute", "start_from"):
        recipe.pop(name, None)
    # the usual warm-up of thousands of steps would take most of this training
    schedule = dict(recipe.get("schedule", {}))
    usual = schedule.get("warmup_steps", ScheduleConfig().warmup_steps)
    schedule["warmup_steps"] = min(usual, steps // LONGEST_WARMUP)
    never = steps + 1
    return recipe | {
        "max_steps": steps,
        "evaluate_every": never,
        "checkpoints": {"every": never},
        "schedule": schedule,
        "seed": seed,
    }


def spread(structures: list[Structure], most: int) -> list[Structure]:
    """At most `most` structures, evenly spaced in the list."""
    number = min(len(structures), most)
    return [structures[index * len(structures) // number] for index in range(number)]


# --- the file


def _cell_of(row: FewShotRow) -> Cell:
    return Cell(row.num_structures, row.seed, row.strategy)


def _rows_of(paths: Iterable[Path], origin: dict[str, Any]) -> list[FewShotRow]:
    """The rows of several files that belong to the same curve; each cell once."""
    rows: dict[Cell, FewShotRow] = {}
    for path in paths:
        if not path.is_file():
            continue
        curve = FewShotCurve.read(path)
        if curve.origin == origin:
            for row in curve.rows:
                rows.setdefault(_cell_of(row), row)
    return list(rows.values())


def _files_of_tasks(out: Path) -> list[Path]:
    """The files that the tasks of a job array have written."""
    return sorted(out.parent.glob(f"{out.stem}-task*of*.json"))


def _set_aside(
    path: Path, origin: dict[str, Any], overwrite: bool, say: Callable[[str], None]
) -> None:
    """Refuse a file whose rows have another origin; with `overwrite`, rename it.

    Raises DestinationError.
    """
    if not path.is_file() or FewShotCurve.read(path).origin == origin:
        return
    if not overwrite:
        raise DestinationError(
            "holds a curve of another model, data set or settings",
            file=path,
            remedy="choose another OUT; --overwrite renames this file and starts a new curve",
        )
    for number in itertools.count(1):
        free = path.with_name(f"{path.stem}.{number}.json")
        if not free.exists():
            break
    with file_errors(path):
        path.rename(free)
    say(f"{path} was of another model, data or settings: its rows are kept in {free}")


def _written(path: Path, curve: FewShotCurve, rows: list[FewShotRow]) -> FewShotCurve:
    """Write a curve with these rows to the file, and return it."""
    force_rms = next((row.force_rms for row in rows if row.force_rms is not None), None)
    curve = curve.model_copy(update={"rows": list(rows), "force_rms": force_rms})
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, curve.to_json())
    return curve
