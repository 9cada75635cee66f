"""The main job on embedded data, end to end, as the commands that a user would type.

Two pretrainings at equal steps, with and without importance weights, run side by side; then the plain one is refitted
to structures of an element that neither saw, in two processes as well. Each has one thread.
"""

from __future__ import annotations

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
from typing import Any

import ase.io
from ase.build import bulk
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..core.files import write_atomically
from ..core.settings import Settings, SettingsError
from ..pretrain.checkpoints.checkpoints import whole_checkpoints


# A second thread gains nothing at these sizes, and where others use the processor, threads wait for each other at every
# operator: on two cores, beside one busy process, the first refit took 456 s with two and below 19 s with one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class QuickstartConfig(Settings):
    """Size of the quick start; the default takes minutes on two cores."""

    num_structures: int = Field(default=2500, gt=0)
    max_steps: int = Field(default=1200, gt=0, description="optimizer steps of each pretraining")
    target: str = Field(
        default="Fe", description="element left out of pretraining, fine-tuned on afterwards"
    )
    beta: float = Field(
        default=0.5, description="strength of the importance weights of the second run"
    )
    sizes: list[int] = Field(default=[4, 8, 16, 32])
    seeds: list[int] = Field(default=[0, 1])
    scratch_steps: int = Field(default=400, ge=0)
    md_steps: int = Field(default=500, gt=0)


@dataclass(frozen=True)
class Step:
    """One command, the file that it leaves behind when it is done and, where it runs beside others, what to watch."""

    words: list[str]
    output: str
    name: str = ""  # of its log and its bar
    total: int = 0
    progress: Callable[[], dict[str, Any]] = dict  # "completed" and "figures"

    def __str__(self) -> str:
        return "evenfield " + shlex.join(self.words)


def quickstart(out: Path, config: QuickstartConfig) -> Path:
    """Run every step whose output is missing; returns the report's page."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    _check_same_settings(out, config)
    console = Console(highlight=False, soft_wrap=True)
    plan = _plan(out, config)
    for group in plan:
        todo = [step for step in group if not (out / step.output).exists()]
        for step in group:
            console.print(
                f"[bold]$ {step}[/bold]" + ("" if step in todo else "   (done before, kept)"),
                markup=True,
            )
        if len(todo) == 1:
            _run(todo[0])
        elif todo:
            _run_side_by_side(todo, out)
    _summarise(out, console, time.perf_counter() - started)
    return out / "report" / "report.html"


def _plan(out: Path, config: QuickstartConfig) -> list[list[Step]]:
    """The steps in order; steps of one group run side by side."""
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    copper.rattle(0.05, seed=0)
    ase.io.write(out / "copper.extxyz", copper)
    steps = [f"max_steps={config.max_steps}", f"evaluate_every={max(1, config.max_steps // 6)}"]
    about = ["licence=Apache-2.0", "description=embedded data, GFN1-xTB and EMT"]
    weights = [f"stream.weights.beta={config.beta}"]
    raw, data, target, hub = out / "embedded.extxyz.gz", out / "data", out / "target", out / "hub"

    def pretrain(name: str, extra: list[str]) -> Step:
        words = [
            "pretrain",
            f"data={data}",
            f"out={out / name}",
            "licence=Apache-2.0",
            *steps,
            *extra,
        ]
        if whole_checkpoints(out / name / "checkpoints"):  # interrupted before
            words += ["--resume", "auto"]
        watched = partial(_latest, out / name / "metrics.jsonl")
        return Step(words, f"{name}/model/manifest.json", name, config.max_steps, watched)

    generate = ["data", "generate", str(raw), f"num_structures={config.num_structures}"]
    leave_out = [
        "data",
        "convert",
        str(raw),
        str(data),
        f"without_elements=[{config.target}]",
        *about,
    ]
    only = ["data", "convert", str(raw), str(target), f"with_elements=[{config.target}]", *about]
    only += ["test_share=0.5", "valid_share=0.0"]
    ladder = [
        f"sizes={config.sizes}",
        f"seeds={config.seeds}",
        f"scratch_steps={config.scratch_steps}",
    ]
    curve = [
        "finetune",
        "curve",
        str(out / "uniform" / "model"),
        str(target),
        str(out / "fewshot.json"),
        *ladder,
    ]

    def share(task: int) -> Step:
        cells, name = (
            len(config.sizes) * len(config.seeds) * (1 + bool(config.scratch_steps)),
            f"fewshot-task{task}of2",
        )
        watched = partial(_finished, out / f"{name}.json")
        # the last command draws the picture and is the one to ask: the JSON files are there after their first rows
        return Step(
            [*curve, "--task", f"{task}/2"], "fewshot.png", name, (cells + 2 - task) // 2, watched
        )

    publish = [
        "hub",
        "publish",
        str(out / "uniform" / "model"),
        "quickstart/uniform",
        "--folder-hub",
        str(hub),
    ]
    simulate = ["simulate", "quickstart/uniform", str(out / "copper.extxyz"), str(out / "dynamics")]
    simulate += [f"steps={config.md_steps}", "--folder-hub", str(hub), "--level-of-theory", "EMT"]
    report = [
        "report",
        str(out / "report"),
        f"uniform={out / 'uniform'}",
        f"reweighted={out / 'reweighted'}",
    ]
    report += ["--title", "evenfield quick start", "--fewshot", str(out / "fewshot.json")]
    report += ["--model-card", str(out / "uniform" / "model" / "README.md")]
    return [
        [Step(generate, raw.name)],
        [Step(leave_out, "data/dataset_info.json")],
        [Step(only, "target/dataset_info.json")],
        [Step(["data", "census", str(data)], "data/census.png")],
        [pretrain("uniform", []), pretrain("reweighted", weights)],
        [share(1), share(2)],
        [Step(curve, "fewshot.png")],
        [Step(publish, "hub/quickstart/uniform/refs/main")],
        [Step(simulate, "dynamics/dynamics.json")],
        [Step(report, "report/report.html")],
    ]


def _check_same_settings(out: Path, config: QuickstartConfig) -> None:
    path, settings = out / "quickstart.json", config.model_dump_json(indent=1)
    if path.is_file() and path.read_text() != settings:
        raise SettingsError(
            f"{out}: was made with other settings ({path}): remove the folder or name another"
        )
    write_atomically(path, settings)


def _command(step: Step) -> list[str]:
    return [sys.executable, "-m", "evenfield.cli", *step.words]


def _run(step: Step) -> None:
    code = subprocess.run(_command(step), env=os.environ | ENVIRONMENT, check=False).returncode
    if code:
        raise RuntimeError(f"`{step}` failed with exit code {code}; see its message above")


def _run_side_by_side(steps: list[Step], out: Path) -> None:
    """Run commands at once, their output in log files, a bar for each from the file that it writes."""
    logs = [out / f"{step.name}.log" for step in steps]
    processes = []
    for step, log in zip(steps, logs, strict=True):
        with log.open("w") as file:
            processes.append(
                subprocess.Popen(
                    _command(step), env=os.environ | ENVIRONMENT, stdout=file, stderr=file
                )
            )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns) as bar:
            tasks = [bar.add_task(step.name, total=step.total, figures="") for step in steps]
            while any(process.poll() is None for process in processes):
                time.sleep(1.0)
                for task, step in zip(tasks, steps, strict=True):
                    bar.update(task, **step.progress())
    finally:
        for process in processes:
            process.terminate()  # does nothing to one that has ended
            process.wait()
    for step, log, process in zip(steps, logs, processes, strict=True):
        if process.returncode:
            tail = "\n".join(log.read_text().splitlines()[-3:])
            raise RuntimeError(
                f"`{step}` failed with exit code {process.returncode}; {log} ends:\n{tail}"
            )


def _latest(metrics: Path) -> dict[str, Any]:
    """Step and figures of the newest whole line of a metrics file."""
    rows = (
        [line for line in metrics.read_text().splitlines() if line.endswith("}")]
        if metrics.is_file()
        else []
    )
    steps = [row for row in map(json.loads, rows[-2:]) if row["event"] == "step"]
    if not steps:
        return {}
    row = steps[-1]
    return {"completed": row["step"], "figures": f"step {row['step']}  loss {row['loss']:.3f}"}


def _finished(curve: Path) -> dict[str, Any]:
    """How many fine-tunings a few-shot file holds, and the newest."""
    rows = json.loads(curve.read_text())["rows"] if curve.is_file() else []
    own = [
        row for row in rows if row["strategy"] not in ("pretrained", "step0")
    ]  # which come with each
    if not own:
        return {}
    row = own[-1]
    return {
        "completed": len(own),
        "figures": f"{row['num_structures']} structures, {row['strategy']}",
    }


def _summarise(out: Path, console: Console, seconds: float) -> None:
    evaluations = {
        name: json.loads((out / name / "evaluation.json").read_text())
        for name in ("uniform", "reweighted")
    }
    for name, row in evaluations.items():
        console.print(
            f"{name}: test force MAE {row['force_mae']:.3f} eV/A, {row['force_mae'] / row['force_rms']:.0%} of the RMS "
            f"{row['force_rms']:.3f}; mean over elements {row['mean_over_elements_force_mae']:.3f}, "
            f"worst decile {row['worst_decile_force_mae']:.3f}"
        )
    dynamics = json.loads((out / "dynamics" / "dynamics.json").read_text())
    console.print(
        f"NVE of {dynamics['formula']}: drift {dynamics['drift_mev_per_atom_ps']:.3f} meV/atom/ps"
    )
    console.print(f"report:  {out / 'report' / 'report.html'}")
    console.print(
        f"model:   {out / 'hub'}  (quickstart/uniform, for model_zoo.load and --folder-hub)"
    )
    console.print(f"all done in {seconds / 60:.1f} minutes; everything is in {out}")
