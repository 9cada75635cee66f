"""Ask the oracle for labels, in the process of `labeller.py`, and never twice for the same one.

With `slurm`, the tasks of a job array are these processes (`array_job.py`).

An answer that is on disk is read. A labeller that has outlived its loop is waited for. If the
oracle cannot label a structure, the reason is the answer, and the oracle is not asked again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ...core.files import file_errors
from ...core.locks import LockedError, held
from ...data_pipelines.structure import Structure
from . import array_job, store
from .config import LearnConfig
from .labeller import (
    ANSWER,
    LOCK,
    NOT_WRITTEN,
    ORACLE,
    PROCESS,
    REQUEST,
    LabellingError,
    place_name,
    python_path,
    times_asked,
)


# s, between two looks for answers
PATIENCE = 0.05
# A structure is given up after it was asked for this often: it may bring the machine down.
MOST_ASKED = 3
LOG = "labeller.log"


@dataclass(frozen=True)
class Label:
    """The answer of the oracle to one structure."""

    atoms: Atoms
    name: str
    """Unique in the loop, such as 003-007: the round, and the number in it."""
    results: dict[str, Any]
    """energy (eV), forces (eV/A), stress (eV/A^3); empty where it failed."""
    failure: str | None
    """Why the structure has no label, in a word; None if it has one."""
    detail: str
    """The same in a sentence."""
    seconds: float
    """How long the oracle took."""

    def structure(self, level: str) -> Structure:
        """The labelled structure, for a data set or a fine-tuning."""
        return Structure.from_atoms(
            self.atoms, level, self.name, group=self.name, split="train", **self.results
        )


def labels_of(
    folder: Path,
    frames: Sequence[Atoms],
    config: LearnConfig,
    show: Callable[[int], None] = lambda _: None,
) -> list[Label]:
    """The answers for all structures of a round, in their order; `show` is told their number.

    Raises LabellingError if answers cannot be written, and FileError for the folder.
    """
    oracle = {
        "oracle": config.oracle,
        "settings": config.oracle_settings,
        "largest_force": config.largest_force,
    }
    store.write(folder / ORACLE, oracle)
    places = [folder / place_name(number) for number in range(len(frames))]
    for place, atoms in zip(places, frames, strict=True):
        if not (place / REQUEST).exists():
            store.write(place / REQUEST, {"atoms": store.as_json(atoms)})

    # A job that was submitted is waited for, even if the rest is to be labelled here by now.
    if config.slurm is not None or (folder / array_job.JOB).exists():
        while _is_at_work(folder):
            # a labeller from before the loop was told to use a cluster
            _watch(folder, places, None, config.timeout)
        array_job.await_answers(folder, places, config.slurm, config.timeout, show)
    _label_here(folder, places, config.timeout, show)
    show(len(places))

    round_name = folder.parent.name
    return [
        _label(place, atoms, f"{round_name}-{place.name}")
        for place, atoms in zip(places, frames, strict=True)
    ]


def _label_here(
    folder: Path, places: Sequence[Path], timeout: float, show: Callable[[int], None]
) -> None:
    """Let labellers on this machine answer what is missing, one labeller after the other."""
    process: subprocess.Popen[str] | None = None
    try:
        while missing := [place for place in places if not (place / ANSWER).exists()]:
            show(len(places) - len(missing))
            if process is None and not _is_at_work(folder):
                _give_up_on_those_that_end_it(missing)
                if all((place / ANSWER).exists() for place in missing):
                    continue
                process = _start(folder)
            _watch(folder, missing, process, timeout)
            if process is not None and process.poll() is not None:
                _explain_end(missing, process)
                process = None
    except KeyboardInterrupt:
        # a user who stops the loop by hand does not want its calculations to go on
        _end(folder, process)
        raise
    if process is not None:
        # it has nothing left to do
        process.wait()


def _label(place: Path, atoms: Atoms, name: str) -> Label:
    """Read the answer in the folder of a label."""
    answer = store.read(place / ANSWER)
    seconds = answer.pop("seconds")
    failure = answer.pop("failure", None)
    detail = answer.pop("detail", "")
    results: dict[str, Any] = {}
    for key, value in answer.items():
        results[key] = float(value) if key == "energy" else np.array(value)
    return Label(atoms, name, results, failure, detail, seconds)


def _start(folder: Path) -> subprocess.Popen[str]:
    """A labeller that lives on when this process is killed."""
    environment = os.environ | {
        # the oracle must be able to import what this process can
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    words = [sys.executable, "-m", f"{__package__}.labeller", str(folder)]
    # not into a pipe, which nobody would empty after this process was killed
    with file_errors(folder), (folder / LOG).open("w") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            text=True,
        )


def _is_at_work(folder: Path) -> bool:
    """Whether a labeller holds the lock, such as one that has outlived its loop."""
    try:
        with held(folder / LOCK, LockedError("")):
            return False
    except LockedError:
        return True


def _watch(
    folder: Path, missing: list[Path], process: subprocess.Popen[str] | None, timeout: float
) -> None:
    """Wait a moment; end a labeller that takes too long, and write a failure in its place.

    process: the labeller, or None for one that this process has not started.
    """
    time.sleep(PATIENCE)
    for place in missing:
        asked = times_asked(place)
        if not asked or (place / ANSWER).exists():
            continue
        took = time.time() - asked[-1]
        if took <= timeout:
            continue
        at_work = process.poll() is None if process is not None else _is_at_work(folder)
        if not at_work:
            continue
        _end(folder, process)
        # the answer may have come at the last moment
        if not (place / ANSWER).exists():
            failure = {"failure": "time-out", "detail": f"no label after {timeout:g} s"}
            store.write(place / ANSWER, failure | {"seconds": round(took, 3)})
        return


def _end(folder: Path, process: subprocess.Popen[str] | None) -> None:
    """End the labeller and whatever it has started, and wait until it is gone."""
    process_id = process.pid if process is not None else None
    if process_id is None:
        with suppress(OSError, ValueError):
            process_id = int((folder / PROCESS).read_text())
    if process_id is not None:
        with suppress(ProcessLookupError, PermissionError):
            # it leads a session, and with it a group of processes with the same number
            os.killpg(process_id, signal.SIGKILL)
    if process is not None:
        process.wait()
    while _is_at_work(folder):
        time.sleep(PATIENCE)


def _explain_end(missing: list[Path], process: subprocess.Popen[str]) -> None:
    """Settle what is still missing after a labeller has ended.

    If the oracle ended the process, a failure becomes the answer to what it was asked about. Raises
    LabellingError if the oracle was never asked, or if its answer could not be written.
    """
    code = process.returncode
    unanswered = [place for place in missing if not (place / ANSWER).exists()]
    if code in (0, -signal.SIGKILL) or not unanswered:
        # killed by us after too long a time, or by a machine without memory: tried again
        return
    folder = unanswered[0].parent
    said = (folder / LOG).read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    asked = [place for place in unanswered if times_asked(place)]
    if code == NOT_WRITTEN or not asked:
        raise LabellingError(
            f"the labels cannot be written, or the oracle cannot be started: {last}",
            file=folder,
            remedy="see its log there, and start the command again: no label is lost",
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    failure = {"failure": "oracle_ended", "detail": f"{how}: {last[:200]}", "seconds": 0.0}
    store.write(asked[0] / ANSWER, failure)


def _give_up_on_those_that_end_it(missing: list[Path]) -> None:
    """Write failures for structures at which labellers have ended again and again."""
    for place in missing:
        times = len(times_asked(place))
        if times >= MOST_ASKED:
            failure = {
                "failure": "oracle_ended",
                "detail": f"its process was killed {times} times",
                "seconds": 0.0,
            }
            store.write(place / ANSWER, failure)
