"""Few-shot curves: errors against the number of structures for every strategy and from scratch, on the same draws."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.progress import track

from ...core.files import write_atomically
from ...core.locks import LockedError, held
from ...core.settings import GivenBy, Settings
from ...data_pipelines.convert.convert import ConvertConfig, write_data_set
from ...data_pipelines.store.shards import read_info
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.summary import ErrorSummary
from ...model_zoo.hub.load import LoadedModel
from ...pretrain.config import PretrainConfig
from ...pretrain.run import pretrain
from ..config import FineTuneConfig
from ..run import finetune
from ..strategies import StrategyName, fewest_to_hold_out
from ..target import draw, open_target


FIGURES = ("force_mae", "energy_mae_per_atom")


class CurveConfig(Settings):
    """The ladder: structure counts, seeds of the draws, strategies; `scratch_steps` optimizer steps from scratch.

    An empty list of strategies leaves training from scratch alone.
    """

    sizes: list[int] = Field(
        default=[4, 8, 16, 32], min_length=1, description="numbers of training structures"
    )
    seeds: list[int] = Field(
        default=[0, 1], min_length=1, description="one draw of the structures for each seed"
    )
    strategies: list[StrategyName] = Field(
        default=["refit"], description="as in `evenfield finetune`; empty for none"
    )
    scratch_steps: int = Field(
        default=400,
        ge=0,
        description="optimizer steps of training from scratch, for comparison; 0 for none",
    )
    test_structures: int = Field(
        default=200, gt=0, description="most structures of the test split that are predicted"
    )
    finetune: Annotated[
        FineTuneConfig, GivenBy(strategy="strategies", num_structures="sizes", seed="seeds")
    ] = FineTuneConfig()


def few_shot_curve(
    model: LoadedModel,
    data: Path | str,
    out: Path,
    config: CurveConfig,
    *,
    task: tuple[int, int] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Errors against the number of structures; writes `out` (fewshot.json) after every cell.

    Rows that the file has already, for the same model, data and settings, are not computed again, also when sizes,
    seeds or strategies were added. task: (k, n) computes only every n-th cell, beginning with the k-th of 1..n, into
    a file of its own beside `out`; the call without a task takes up the files of all tasks. A file with rows of
    another model, data or settings is renamed first. Raises ValueError when the data have fewer structures than the
    largest size, or when another process writes the file.
    """
    own = out if task is None else out.with_name(f"{out.stem}-task{task[0]}of{task[1]}.json")
    refusal = LockedError(
        "another process writes this file, and each would lose the other's rows",
        remedy="wait, or share the work with --task",
        file=own,
    )
    with held(own.with_name(f".{own.name}.lock"), refusal):
        return _curve(model, data, out, own, config, task, say)


def _curve(
    model: LoadedModel,
    data: Path | str,
    out: Path,
    own: Path,
    config: CurveConfig,
    task: tuple[int, int] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    ladder = {"sizes", "seeds", "strategies"}
    info = read_info(data)
    origin = {
        "model": model.reference,
        "data": info["source"],
        "config": config.model_dump(mode="json", exclude=ladder),
    }
    draw(data, max(config.sizes), seed=0)  # too many are refused before anything is computed
    _set_aside(own, origin, say)
    rows = _kept_rows(out, origin) + (
        _kept_rows(own, origin) if task else _rows_of_tasks(out, origin)
    )
    done = {(row["num_structures"], row["seed"], row["strategy"]) for row in rows}
    names = [*config.strategies, *(["scratch"] if config.scratch_steps else [])]
    if not names:
        raise ValueError(
            "strategies: none is named and scratch_steps is 0: name a strategy or give scratch_steps"
        )
    # the seeds last: two tasks, of an even number of seeds, then have as much to do
    cells = [(n, seed, name) for n in config.sizes for name in names for seed in config.seeds]
    todo = [
        cell
        for cell in (cells if task is None else cells[task[0] - 1 :: task[1]])
        if cell not in done
    ]
    content = {
        "target": Path(data).name,
        "force_rms": _force_rms(rows),
        "origin": origin,
        "rows": rows,
    }
    for num_structures, seed, name in track(todo, "few-shot curve", transient=True):
        for row in _cell(model, data, config, num_structures, seed, name):
            if (row["num_structures"], row["seed"], row["strategy"]) not in done:
                done.add((row["num_structures"], row["seed"], row["strategy"]))
                rows.append(row)
        say(f"{num_structures} structures, seed {seed}, {name}: {_figures(rows[-1])}")
        content["force_rms"] = _force_rms(rows)
        _write(own, content)
    _write(own, content)
    return content


def _cell(
    model: LoadedModel,
    data: Path | str,
    config: CurveConfig,
    num_structures: int,
    seed: int,
    name: str,
) -> list[dict[str, Any]]:
    """The rows of one fine-tuning: its strategy, and the steps before it."""
    settings = config.finetune.model_copy(update={"num_structures": num_structures, "seed": seed})
    target = open_target(
        data,
        num_structures=num_structures,
        seed=seed,
        valid_share=settings.valid_share,
        fewest_to_hold_out=fewest_to_hold_out(name),
    )
    target = replace(target, test=spread(target.test, config.test_structures))
    if name == "scratch":
        evaluation, seconds = _from_scratch(
            model, target.train + target.valid, target.test, config.scratch_steps, seed
        )
        evaluations, all_seconds = {"scratch": evaluation}, {"scratch": seconds}
    else:
        result = finetune(model, target, settings.model_copy(update={"strategy": name}))
        stages = {
            "pretrained": result.stages["pretrained"],
            "step0": result.stages["step0"],
            name: result.final,
        }
        evaluations = {key: stage.errors for key, stage in stages.items()}
        all_seconds = {key: stage.seconds for key, stage in stages.items()}
    rows = []
    for key, evaluation in evaluations.items():
        row = {"num_structures": num_structures, "strategy": key, "seed": seed}
        row |= {figure: getattr(evaluation, figure) for figure in (*FIGURES, "force_rms")}
        rows.append(row | {"seconds": round(all_seconds[key], 2)})
    return rows


def _from_scratch(
    model: LoadedModel, train: list[Structure], test: list[Structure], steps: int, seed: int
) -> tuple[ErrorSummary, float]:
    """The pretrained model's own recipe on the few structures alone: test errors and seconds."""
    recipe = dict(model.record.training.get("config", {}))
    recipe |= {
        "max_steps": steps,
        "evaluate_every": steps + 1,
        "checkpoints": {"every": steps + 1},
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        parts = [replace(s, split="train") for s in train] + [
            replace(s, split="test") for s in test
        ]
        write_data_set(
            parts, Path(folder) / "data", {"file": "few structures", "sha256": ""}, ConvertConfig()
        )
        config = PretrainConfig.model_validate(
            recipe | {"data": f"{folder}/data", "out": f"{folder}/scratch"}
        )
        started = time.perf_counter()
        trained = pretrain(config, quiet=True)
        seconds = time.perf_counter() - started
        if trained is None:  # a signal stopped it
            raise KeyboardInterrupt
        return ErrorSummary.read(trained / "evaluation.json"), seconds


def spread(structures: list[Structure], most: int) -> list[Structure]:
    number = min(len(structures), most)
    return [structures[k * len(structures) // number] for k in range(number)]


def _kept_rows(path: Path, origin: dict[str, Any]) -> list[dict[str, Any]]:
    content = json.loads(path.read_text()) if path.is_file() else {}
    return list(content["rows"]) if content.get("origin") == origin else []


def _set_aside(path: Path, origin: dict[str, Any], say: Callable[[str], None]) -> None:
    """Rename a file whose rows are of something else: they may have taken hours."""
    if path.is_file() and json.loads(path.read_text()).get("origin") != origin:
        number = next(
            k for k in itertools.count(1) if not path.with_name(f"{path.stem}.{k}.json").exists()
        )
        kept = path.rename(path.with_name(f"{path.stem}.{number}.json"))
        say(f"{path} was of another model, data or settings: its rows are kept in {kept}")


def _rows_of_tasks(out: Path, origin: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that the tasks of an array have left, each once."""
    found: dict[tuple[int, int, str], dict[str, Any]] = {}
    for path in sorted(out.parent.glob(f"{out.stem}-task*of*.json")):
        for row in _kept_rows(path, origin):
            found.setdefault((row["num_structures"], row["seed"], row["strategy"]), row)
    own = {(row["num_structures"], row["seed"], row["strategy"]) for row in _kept_rows(out, origin)}
    return [row for key, row in found.items() if key not in own]


def _force_rms(rows: list[dict[str, Any]]) -> float | None:
    return next((row["force_rms"] for row in rows if row["force_rms"] is not None), None)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1))


def _figures(row: dict[str, Any]) -> str:
    energy, force = row["energy_mae_per_atom"], row["force_mae"]
    parts = [] if energy is None else [f"{1000 * energy:.1f} meV/atom"]
    return " ".join(
        [*parts, *([] if force is None else [f"{force:.3f} eV/A"]), f"{row['seconds']:.0f} s"]
    )
