"""A small world of everything that evenfield writes, and calls in processes of their own.

The data set has two levels of theory, the run two checkpoints, the model a probe set, a posterior
and a card with pictures; the model is published to a folder hub and loaded through a cache. All of
it takes some ten seconds to make.

`call` runs a function in a fork: a crash, a hang or a huge allocation is then an outcome, not the
end of the benchmark. The parent has imported everything, so a call costs little.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


RESULTS = Path(__file__).resolve().parents[1] / "results"
METALS = ("Cu", "Ag", "Au", "Pt")
LEVELS = ("EMT", "EMT-shifted")
SHIFT = 3.0  # eV an atom, between the two levels
LICENCE = "CC0-1.0"
REPO = "bench/metals"
STEPS = 8
EVERY = 2  # steps between checkpoints
LOOK = 1.0  # s between two looks at a call
MOST_MEMORY = 8 << 30  # so that a bad call cannot take the machine down


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    kind: str
    """`done`, `refused` (a clear error), `traceback`, `killed` (by a signal) or `hung`."""
    value: str
    """What the function returned, or the error."""
    seconds: float
    """By the clock."""
    cpu_seconds: float = 0.0
    memory: int = 0
    """Peak bytes above those that the process started with."""


# --- the world


def write_source(path: Path, level: str, number: int = 32, seed: int = 0) -> Path:
    """Rattled crystals of 4 metals with EMT labels."""
    rng = np.random.default_rng(seed)
    shift = SHIFT if level == LEVELS[1] else 0.0
    frames = []
    for index in range(number):
        atoms: Atoms = bulk(METALS[index % len(METALS)], cubic=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        labels = SinglePointCalculator(
            atoms,
            energy=atoms.get_potential_energy() - shift * len(atoms),
            forces=atoms.get_forces(),
            stress=atoms.get_stress(),
        )
        atoms.calc = labels
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def convert_config(level: str) -> ConvertConfig:
    """Each structure is a group of its own, so that a small set has all splits."""
    return ConvertConfig.model_validate(
        {
            "level_of_theory": level,
            "licence": LICENCE,
            "split_by": "structure",
            "test_share": 0.2,
            "valid_share": 0.2,
        }
    )


def run_config(data: list[Path], out: Path, steps: int = STEPS) -> PretrainConfig:
    """A tiny run that saves every second step."""
    return PretrainConfig.model_validate(
        {
            "data": [str(folder) for folder in data],
            "out": str(out),
            "max_steps": steps,
            "evaluate_every": 10**6,
            "model": {
                "channels": 4,
                "l_max": 1,
                "readout_size": 8,
                "radial_hidden": 8,
                "cutoff": 3.5,
            },
            "stream": {"edge_budget": 200, "window_blocks": 1},
            "schedule": {"warmup_steps": 3},
            "average": {"decay": 0.9},
            "checkpoints": {"every": EVERY, "keep": 2},
        }
    )


def make_world(folder: Path) -> None:
    """data-0, data-1, run (with run/model), hub and cache in `folder`."""
    data = []
    for number, level in enumerate(LEVELS):
        source = write_source(folder / f"source-{number}.extxyz", level, seed=number)
        data.append(folder / f"data-{number}")
        convert(str(source), data[-1], convert_config(level), workers=1)
    pretrain(run_config(data, folder / "run"), "no", quiet=True)

    model = folder / "run" / "model"
    # as it was trained, without probe set and posterior
    shutil.copytree(model, folder / "bare")
    evenfield(["finetune", "attach", str(model), str(data[0])])
    facts = [f"licence={LICENCE}"]
    facts += [f"level_details.{level}=effective medium of ASE" for level in LEVELS]
    evenfield(["hub", "describe", str(model), *facts])
    evenfield(
        ["hub", "publish", "--allow-failed", str(model), REPO, "--folder-hub", str(folder / "hub")]
    )


def make_in_a_fork(function: Callable[..., object], *arguments: Any) -> None:
    """Make files of the world in a process of its own; ends the benchmark where that fails."""
    made = call(lambda: str(function(*arguments)), 600)
    if made.kind != "done":
        raise SystemExit(f"the files could not be made: {made}")


@contextmanager
def world_and_copy() -> Iterator[tuple[Path, Path]]:
    """A world, and where a copy of it goes; both are removed at the end. No network is reached.

    Both end in the same name: settings and records may hold the path.
    """
    with tempfile.TemporaryDirectory() as name, no_network():
        world = Path(name) / "original" / "world"
        copy = Path(name) / "copy" / "world"
        world.mkdir(parents=True)
        make_in_a_fork(make_world, world)
        yield world, copy


def evenfield(words: list[str]) -> None:
    """A command of evenfield in this process; errors are raised."""
    from evenfield.cli import app

    app(words, standalone_mode=False)


def prepare() -> None:
    """Import what forks will need, and set what they inherit."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("deepspeed", "matplotlib.figure", "evenfield.cli"):
        importlib.import_module(name)


# --- calls


def call(function: Callable[[], str], seconds: float = 60.0) -> Outcome:
    """Run `function` in a fork, for at most `seconds` and MOST_MEMORY bytes more than now."""
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(function, writing)

    os.close(writing)
    before = _resident(pid)
    text, hung = _read(reading, pid, seconds)
    _, status, usage = os.wait4(pid, 0)
    spent = time.monotonic() - started
    cpu = usage.ru_utime + usage.ru_stime
    # the peak is in kB
    memory = max(0, 1024 * usage.ru_maxrss - before)

    code = os.waitstatus_to_exitcode(status)
    if hung:
        kind, value = "hung", f"after {seconds:.0f} s"
    elif code < 0:
        kind, value = "killed", signal.Signals(-code).name
    elif not text:
        kind, value = "killed", f"exit code {code}"
    else:
        kind, value = json.loads(text)
    return Outcome(kind, value, spent, cpu, memory)


def _resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else 0


def _child(function: Callable[[], str], writing: int) -> None:
    """The rest of the life of a fork: it never returns."""
    # what a command prints would hide the table
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # of the address space, which is larger than what is used: a stop, not a measure
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        found = ["done", function()]
    except EvenfieldError as error:
        found = ["refused", " ".join(str(error).split())[:300]]
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        found = ["traceback", f"{type(error).__name__} at {where}: {error}"[:300]]
    os.write(writing, json.dumps(found).encode())
    os._exit(0)


def _read(reading: int, pid: int, seconds: float) -> tuple[str, bool]:
    """What a fork wrote, and whether it had to be killed after so many seconds.

    Time in which this process was stopped, or the machine slept, does not count: the fork was
    stopped as well.
    """
    import select

    text = b""
    hung = False
    left = seconds
    while True:
        began = time.monotonic()
        ready, _, _ = select.select([reading], [], [], min(left, LOOK))
        left -= min(time.monotonic() - began, 2 * LOOK)
        if not ready:
            if left > 0:
                continue
            hung = True
            os.kill(pid, signal.SIGKILL)
            break
        part = os.read(reading, 1 << 16)
        if not part:
            break
        text += part
    os.close(reading)
    return text.decode(), hung


# --- results


def digest(*parts: Any) -> str:
    """A hash of texts, bytes, arrays and JSON-like values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, bytes):
            found.update(part)
        else:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
        found.update(b"\0")
    return found.hexdigest()[:16]


def write_result(name: str, content: dict[str, Any], path: Path | None = None) -> None:
    """Write results/NAME.json, or `path`."""
    path = path or RESULTS / f"{name}.json"
    path.write_text(json.dumps({"date": time.strftime("%Y-%m-%d")} | content, indent=1) + "\n")
    print(f"written: {path}")


def print_table(outcomes: dict[str, dict[str, int]]) -> None:
    """Rows by kind, columns by outcome."""
    columns = sorted({name for counts in outcomes.values() for name in counts})
    width = max(len(kind) for kind in outcomes)
    print(" " * width, *(f"{name:>12}" for name in columns))
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind:{width}}", *(f"{counts.get(name, 0):>12}" for name in columns))


@contextmanager
def no_network() -> Iterator[None]:
    """Fail at once where a call would leave the machine."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
