"""The quick start: from demo data to a report, by the commands that a user would type.

Two pretrainings of equal length run side by side. One takes the data as they are. The other gets
help with rare elements: importance weights, and cheap labels at another level of theory. In most of
the test split all cations are equally frequent, so that the errors of rare elements can be judged.
The model without help is published, and then used for molecular dynamics. The shipped model
deserves more trust than one of a few minutes. So it is the one that is fine-tuned, to a few
molecules at a level of theory that it does not know, and it is compared with training from scratch
on more molecules. A report shows all results.

`_plan` lists the commands, and `run_quickstart` runs those whose output is missing.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import ase.io
from ase.build import bulk
from pydantic import Field
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table

from ..core.destination import check_destination
from ..core.errors import EvenfieldError
from ..core.files import file_errors, write_atomically
from ..core.rich_console import Console, PlainColumn
from ..core.settings import Settings, SettingsError
from ..data_pipelines.store.shards import INFO
from ..data_pipelines.store.whole import damage_of
from ..finetune.few_shot.results import BASELINE, ErrorName, FewShotCurve
from ..finetune.strategies import StrategyName
from ..model_zoo.evaluation.evenness import evenness, evenness_change
from ..model_zoo.evaluation.summary import ErrorSummary


# A second thread gains nothing at these sizes. Next to other programs it costs a lot, since threads
# wait for each other at every operator: on two cores, next to one busy process, the first refit
# took 456 s with two threads and less than 19 s with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

SETTINGS_FILE = "quickstart.json"
# Names of the two pretrainings, of their folders and in the report.
UNIFORM = "uniform"
EVEN = "even"
# Names of the data sets with main and with cheap labels; the shares are set by these names.
MAIN = "data"
CHEAP = "cheap"
CHEAP_ORACLE = "GFN2-xTB"
NUM_SHARES = 2  # processes that share the few-shot curve

# Strategies of few-shot rows without any training. The progress bar counts fine-tunings only.
NOT_TRAINED = ("pretrained", "step0")


class QuickstartConfig(Settings):
    """Size of the quick start; the defaults take about nine minutes on two fast cores."""

    num_structures: int = Field(default=2500, gt=0, description="structures of demo data to make")
    even_test: int = Field(
        default=600, ge=0, description="further structures that only test, with all cations alike"
    )
    max_steps: int = Field(default=1200, gt=0, description="optimizer steps of each pretraining")
    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="strength of the importance weights of the second pretraining",
    )
    cheap_per_element: int = Field(
        default=20, gt=0, description="structures with cheap labels of each rare element"
    )
    cheap_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="share of the structures with cheap labels in the second pretraining",
    )
    pretrained: str = Field(
        default="evenfield-1", description="model that learns from molecules at another level"
    )
    num_molecules: int = Field(
        default=400, gt=0, description="organic molecules to make; 35 percent of them test"
    )
    sizes: list[Annotated[int, Field(gt=0)]] = Field(
        default=[8, 16], description="numbers of molecules that the pretrained model learns from"
    )
    strategies: list[StrategyName] = Field(
        default=["refit", "full"], description="ways in which it learns from them"
    )
    scratch_sizes: list[Annotated[int, Field(gt=0)]] = Field(
        default=[16, 160], description="numbers of molecules of training from scratch"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0], description="one draw of the molecules for each seed"
    )
    scratch_steps: int = Field(
        default=1000, ge=0, description="steps of training from scratch, for comparison; 0 for none"
    )
    md_steps: int = Field(default=500, gt=0, description="time steps of the molecular dynamics")


@dataclass(frozen=True)
class Step:
    """One command of the plan.

    words: its arguments, without `evenfield`.
    output: file below the quick start's folder that exists when the step is done.
    name: of its log and its progress bar, if it runs next to others.
    total: length of its bar.
    progress: reads `completed` and `figures` for its bar; empty before there are any.
    damage: what is wrong with an existing output; if anything is, the step is done again.
    """

    words: list[str]
    output: str
    name: str = ""
    total: int = 0
    progress: Callable[[], dict[str, Any]] = dict
    damage: str = ""

    def __str__(self) -> str:
        return "evenfield " + shlex.join(self.words)


class StepFailedError(EvenfieldError):
    """A command of the quick start failed. Its own message is on the terminal or in its log."""


def run_quickstart(out: Path, config: QuickstartConfig) -> Path:
    """Run every step whose output is missing; returns the page of the report.

    Raises:
        SettingsError: `out` holds a quick start with other settings.
        StepFailedError: a command failed.
    """
    started = time.perf_counter()
    if not (out / SETTINGS_FILE).is_file():
        check_destination(out, elsewhere="name another folder", remedy="name another folder")
    with file_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _refuse_other_settings(out, config)
        _write_copper(out / "copper.extxyz")

    console = Console(soft_wrap=True)
    for group in _plan(out, config):
        missing = [step for step in group if step.damage or not (out / step.output).exists()]
        # commands that were done before are shown too, so that a second call reads like the first
        for step in group:
            remark = "" if step in missing else "   (done before, kept)"
            if step.damage:
                remark = f"   (done before, and damaged: {step.damage})"
            console.print(f"$ {step}{remark}", style="bold")

        if len(missing) == 1:
            _run(missing[0])
        elif missing:
            _run_side_by_side(missing, out)

    seconds = time.perf_counter() - started
    _summarise(out, console, seconds)
    return out / "report" / "report.html"


def _refuse_other_settings(out: Path, config: QuickstartConfig) -> None:
    """Write the settings; raise SettingsError if the folder was made with others.

    Outputs are kept by their names, so those of other settings would be taken for ours.
    """
    path = out / SETTINGS_FILE
    settings = config.model_dump_json(indent=1)
    if path.is_file() and path.read_text() != settings:
        raise SettingsError(
            "this folder was made with other settings",
            file=path,
            remedy="remove the folder or name another",
        )
    with file_errors(path):
        write_atomically(path, settings)


def _write_copper(path: Path) -> None:
    """Write the structure for the molecular dynamics: 32 atoms near their lattice sites."""
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    copper.rattle(0.05, seed=0)
    ase.io.write(path, copper)


# --- the commands


def _plan(out: Path, config: QuickstartConfig) -> list[list[Step]]:
    """The steps in order; those of one group run side by side."""
    uniform = _pretraining(out, config, UNIFORM, [MAIN], [])
    help_for_rare_elements = [
        f"mixing.shares.{MAIN}={1 - config.cheap_share}",
        f"mixing.shares.{CHEAP}={config.cheap_share}",
        f"stream.weights.beta={config.beta}",
    ]
    even = _pretraining(out, config, EVEN, [MAIN, CHEAP], help_for_rare_elements)
    return [
        *[[step] for step in _data_steps(out, config)],
        [uniform, even],
        *_few_shot_steps(out, config),
        [_publication(out)],
        [_dynamics(out, config)],
        [_report(out)],
    ]


def _data_steps(out: Path, config: QuickstartConfig) -> list[Step]:
    """Steps that make the demo data, the cheap labels, and the molecules of the few-shot curve."""
    raw = out / "embedded.extxyz.gz"
    data = out / MAIN
    cheap = out / CHEAP
    about = ["licence=Apache-2.0", "description=demo data, GFN1-xTB and EMT"]
    sizes = [f"num_structures={config.num_structures}", f"even_test={config.even_test}"]
    generate = ["data", "generate", str(raw), *sizes]
    convert = ["data", "convert", str(raw), str(data), *about]
    census = ["data", "census", str(data)]
    enrich = [
        "data",
        "enrich",
        str(data),
        str(cheap),
        f"oracle={CHEAP_ORACLE}",
        f"structures_per_element={config.cheap_per_element}",
    ]

    raw_molecules = out / "molecules.extxyz.gz"
    molecules = out / "molecules"
    count = f"num_structures={config.num_molecules}"
    generate_molecules = ["data", "generate", str(raw_molecules), "only=organic", count]
    # molecules of one composition are on one side; no refit stops by validation
    shares = ["test_share=0.35", "valid_share=0.0"]
    convert_molecules = ["data", "convert", str(raw_molecules), str(molecules), *about, *shares]
    return [
        Step(generate, raw.name),
        _data_set(convert, data),
        Step(census, f"{MAIN}/census.png"),
        _data_set(enrich, cheap),
        Step(generate_molecules, raw_molecules.name),
        _data_set(convert_molecules, molecules),
    ]


def _data_set(words: list[str], folder: Path) -> Step:
    """The step that makes a data set. It is done again if a file of the set is damaged."""
    output = f"{folder.name}/{INFO}"
    damage = damage_of(folder) if (folder / INFO).exists() else None
    if damage is None:
        return Step(words, output)
    return Step([*words, "--overwrite"], output, damage=f"{damage.file} {damage.message}")


def _pretraining(
    out: Path, config: QuickstartConfig, name: str, data: list[str], settings: list[str]
) -> Step:
    """A pretraining; the two differ only by the names of their data sets and by `settings`."""
    folders = [str(out / name) for name in data]
    source = folders[0] if len(folders) == 1 else f"[{','.join(folders)}]"
    words = [
        "pretrain",
        f"data={source}",
        f"out={out / name}",
        "licence=Apache-2.0",
        f"max_steps={config.max_steps}",
        f"evaluate_every={max(1, config.max_steps // 6)}",
        *settings,
    ]
    if (out / name).exists():
        # an earlier quick start was interrupted during this step, perhaps before its first save
        words += ["--resume", "auto"]
    progress = partial(_pretraining_progress, out / name / "metrics.jsonl")
    return Step(words, f"{name}/model/manifest.json", name, config.max_steps, progress)


def _few_shot_steps(out: Path, config: QuickstartConfig) -> list[list[Step]]:
    """Groups of steps for the few-shot curve: its shares side by side, then their union."""
    curve = [
        "finetune",
        "curve",
        config.pretrained,
        str(out / "molecules"),
        str(out / "fewshot.json"),
        f"sizes={config.sizes}",
        f"strategies=[{','.join(config.strategies)}]",
        f"scratch_sizes={config.scratch_sizes}",
        f"seeds={config.seeds}",
        f"scratch_steps={config.scratch_steps}",
    ]
    # The picture, which the last command draws, is the output of the shares as well: a share writes
    # its own JSON file after its first row already, so that file does not show that it is done.
    output = "fewshot.png"

    cells_of_seed = len(config.sizes) * len(config.strategies)
    if config.scratch_steps:
        cells_of_seed += len(config.scratch_sizes)
    num_cells = cells_of_seed * len(config.seeds)

    shares = []
    for share in range(1, NUM_SHARES + 1):
        name = f"fewshot-task{share}of{NUM_SHARES}"
        words = [*curve, "--task", f"{share}/{NUM_SHARES}"]
        # cells are dealt out in turn, so this share has every NUM_SHARES-th of them
        total = len(range(share - 1, num_cells, NUM_SHARES))
        progress = partial(_few_shot_progress, out / f"{name}.json")
        shares.append(Step(words, output, name, total, progress))
    return [shares, [Step(curve, output)]]


def _publication(out: Path) -> Step:
    """Publish the model without importance weights in a hub that is a folder."""
    model = str(out / UNIFORM / "model")
    words = ["hub", "publish", model, "quickstart/uniform", "--folder-hub", str(out / "hub")]
    # a model of minutes is not sound, and is not checked
    words.append("--allow-failed")
    return Step(words, "hub/quickstart/uniform/refs/main")


def _dynamics(out: Path, config: QuickstartConfig) -> Step:
    """Molecular dynamics of copper with the published model."""
    words = [
        "simulate",
        "quickstart/uniform",
        str(out / "copper.extxyz"),
        str(out / "dynamics"),
        f"steps={config.md_steps}",
        "--folder-hub",
        str(out / "hub"),
        "--level-of-theory",
        "EMT",
    ]
    if (out / "dynamics").exists():
        # an earlier quick start was interrupted during this step
        words.append("--overwrite")
    return Step(words, "dynamics/dynamics.json")


def _report(out: Path) -> Step:
    """The report of both pretrainings, the few-shot curve and the model card."""
    words = [
        "report",
        str(out / "report"),
        f"{UNIFORM}={out / UNIFORM}",
        f"{EVEN}={out / EVEN}",
        "--title",
        "evenfield quick start",
        "--fewshot",
        str(out / "fewshot.json"),
        "--model-card",
        str(out / UNIFORM / "model" / "README.md"),
    ]
    return Step(words, "report/report.html")


# --- running them


def _command(step: Step) -> list[str]:
    return [sys.executable, "-m", "evenfield.cli", *step.words]


def _run(step: Step) -> None:
    """Run one command, its output on the terminal."""
    environment = os.environ | ENVIRONMENT
    finished = subprocess.run(_command(step), env=environment, check=False)
    if finished.returncode:
        raise StepFailedError(
            f"`{step}` failed with exit code {finished.returncode}",
            remedy="its own message is above",
        )


def _run_side_by_side(steps: list[Step], out: Path) -> None:
    """Run commands at the same time, each with a log file for its output and a progress bar."""
    environment = os.environ | ENVIRONMENT
    logs = [out / f"{step.name}.log" for step in steps]
    processes = []
    for step, log in zip(steps, logs, strict=True):
        with log.open("w") as file:
            command = _command(step)
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            processes.append(process)

    try:
        _show_progress(steps, processes)
    finally:
        # after Ctrl-C none may be left running; this does nothing to one that has ended
        for process in processes:
            process.terminate()
            process.wait()

    for step, log, process in zip(steps, logs, processes, strict=True):
        if process.returncode:
            lines = log.read_text().splitlines()
            last_lines = " / ".join(lines[-3:])
            raise StepFailedError(
                f"`{step}` failed with exit code {process.returncode}; its log ends: {last_lines}",
                file=log,
            )


def _show_progress(steps: list[Step], processes: list[subprocess.Popen[bytes]]) -> None:
    """Draw a bar for each step until all processes have ended."""
    columns = (
        PlainColumn("{task.description}"),
        BarColumn(),
        PlainColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        tasks = [bar.add_task(step.name, total=step.total, figures="") for step in steps]
        while any(process.poll() is None for process in processes):
            time.sleep(1.0)
            for task, step in zip(tasks, steps, strict=True):
                bar.update(task, **step.progress())


def _pretraining_progress(metrics: Path) -> dict[str, Any]:
    """The newest step in a metrics file and its loss, for a progress bar."""
    if not metrics.is_file():
        return {}
    # the run is still writing this file, and its last line may be incomplete
    lines = metrics.read_text().splitlines()
    whole_lines = [line for line in lines if line.endswith("}")]
    # a validation writes a row of its own after the row of its step
    newest_rows = [json.loads(line) for line in whole_lines[-2:]]
    steps = [row for row in newest_rows if row["event"] == "step"]
    if not steps:
        return {}

    newest = steps[-1]
    figures = f"step {newest['step']}  loss {newest['loss']:.3f}"
    return {"completed": newest["step"], "figures": figures}


def _few_shot_progress(curve: Path) -> dict[str, Any]:
    """How many fine-tunings a few-shot file holds and the newest of them, for a progress bar."""
    if not curve.is_file():
        return {}
    rows = json.loads(curve.read_text())["rows"]
    trained = [row for row in rows if row["strategy"] not in NOT_TRAINED]
    if not trained:
        return {}
    newest = trained[-1]
    figures = f"{newest['num_structures']} structures, {newest['strategy']}"
    return {"completed": len(trained), "figures": figures}


# --- what came out


def _summarise(out: Path, console: Console, seconds: float) -> None:
    """Print the main results, and where everything is."""
    for name in (UNIFORM, EVEN):
        errors = ErrorSummary.read(out / name / "evaluation.json")
        console.print(
            f"{name}: test force MAE {errors.force_mae:.3f} eV/A, "
            f"{errors.relative_force_mae:.0%} of the RMS {errors.force_rms:.3f}; "
            f"mean over elements {errors.mean_over_elements_force_mae:.3f}"
        )
    _print_evenness(out, console)
    _print_few_shot(FewShotCurve.read(out / "fewshot.json"), console)

    dynamics_file = out / "dynamics" / "dynamics.json"
    dynamics = json.loads(dynamics_file.read_text())
    drift = dynamics["drift_mev_per_atom_ps"]
    console.print(f"NVE of {dynamics['formula']}: drift {drift:.3f} meV/atom/ps")

    console.print(f"report:  {out / 'report' / 'report.html'}")
    console.print(
        f"model:   {out / 'hub'}  (quickstart/uniform, for model_zoo.load and --folder-hub)"
    )
    console.print(f"all done in {seconds / 60:.1f} minutes; everything is in {out}")


def _print_few_shot(curve: FewShotCurve, console: Console) -> None:
    """Print errors with the most molecules that each strategy and training from scratch saw."""
    shown: list[tuple[ErrorName, str, int]] = [
        ("force_mae", "eV/A", 1),
        ("energy_mae_per_atom", "meV/atom", 1000),
    ]
    strategies = [name for name in curve.strategies if name not in (*NOT_TRAINED, BASELINE)]
    for (error, unit, factor), strategy in itertools.product(shown, strategies):
        tuned = curve.medians(strategy, error)
        scratch = curve.medians(BASELINE, error)
        if not tuned or not scratch:
            continue
        few, many = max(tuned), max(scratch)
        times = curve.times_fewer(strategy, error)
        verdict = "does not reach that" if times is None else f"needs {times:.0f} times fewer"
        console.print(
            f"few-shot, {unit}: {strategy} with {few} molecules {factor * tuned[few]:.3g}, "
            f"from scratch with {many} {factor * scratch[many]:.3g}; {strategy} {verdict}"
        )


def _print_evenness(out: Path, console: Console) -> None:
    """Print errors by thirds of the elements, without and with help for rare ones."""
    before = ErrorSummary.read(out / UNIFORM / "evaluation.json")
    after = ErrorSummary.read(out / EVEN / "evaluation.json")
    groups_after = evenness(after).groups
    changes = evenness_change(before, after).groups

    table = Table(
        "elements",
        "training structures",
        "test atoms",
        UNIFORM,
        EVEN,
        "force error after / before [90 % interval]",
        title="force MAE over force RMS, by thirds of the elements",
    )
    for name, group in evenness(before).groups.items():
        low, high = group.num_train_structures
        other = groups_after.get(name)
        table.add_row(
            name,
            f"{low} to {high}",
            f"{group.num_atoms}",
            f"{group.relative_force_mae.value:.1%}",
            f"{other.relative_force_mae.value:.1%}" if other else "-",
            str(changes.get(name, "-")),
        )
    console.print(table)
