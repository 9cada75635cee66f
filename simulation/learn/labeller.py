"""The process that asks the oracle for one label after the other, and writes each answer at once.

It is a process and a session of its own, for three reasons. A label that takes too long can be
given up. An oracle that crashes does not crash the loop. And a loop that is killed does not take a
calculation of hours with it: the answer is there when the loop goes on.

    python -m evenfield.simulation.learn.labeller FOLDER [NUMBER]

FOLDER holds oracle.json, and a folder with request.json for each label (see `labelling.py`). With a
NUMBER the process is a task of a job array (`array_job.py`), and answers only that request.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import EvenfieldError
from ...core.files import FileError
from ...core.locks import LockedError, held
from ...data_pipelines.demo.oracles import RejectedStructure
from ...data_pipelines.enrich.label_oracles import label, new_calculator
from . import store


ORACLE = "oracle.json"
REQUEST = "request.json"
ANSWER = "answer.json"
# holds one line for each time that the oracle was asked: when that was, in s since 1970
ASKED = "asked"
LOCK = ".labeller.lock"
# holds the process id of the labeller
PROCESS = ".labeller"
# exit code if an answer could not be written, which is not the fault of the structure
NOT_WRITTEN = 74


class LabellingError(EvenfieldError):
    """Labels that could not be had, for a reason that is not the structure."""


def main(folder: Path, number: int | None = None) -> int:
    """Answer all requests without an answer, or the one with this number; returns the exit code."""
    name = "*" if number is None else place_name(number)
    # tasks of an array work side by side, so each has a lock of its own
    locked = folder if number is None else folder / name
    try:
        with held(locked / LOCK, LockedError("another process labels these", file=folder)):
            (locked / PROCESS).write_text(str(os.getpid()))
            oracle = store.read(folder / ORACLE)
            for request in sorted(folder.glob(f"{name}/{REQUEST}")):
                if not (request.parent / ANSWER).exists():
                    _answer(request, oracle)
    except LockedError:
        # the other process answers everything
        return 0
    except (OSError, FileError) as error:
        sys.stderr.write(f"{error}\n")
        return NOT_WRITTEN
    return 0


def _answer(request: Path, oracle: dict[str, Any]) -> None:
    """Ask the oracle about one structure, and write its answer or the reason of the failure."""
    atoms = store.from_json(store.read(request)["atoms"])
    with (request.parent / ASKED).open("a") as file:
        file.write(f"{time.time()}\n")
    began = time.monotonic()
    try:
        # a new calculator: a label must not depend on those before it
        calculator = new_calculator(oracle["oracle"], oracle["settings"])
        labelled = label(atoms, calculator, oracle["largest_force"])
    except RejectedStructure as rejected:
        answer: dict[str, Any] = {"failure": rejected.reason, "detail": rejected.detail}
    else:
        results = labelled.calc.results
        answer = {name: np.asarray(value).tolist() for name, value in results.items()}
    answer["seconds"] = round(time.monotonic() - began, 3)
    store.write(request.parent / ANSWER, answer)


def place_name(number: int) -> str:
    """The name of the folder of a label."""
    return f"{number:03d}"


def times_asked(place: Path) -> list[float]:
    """When the oracle was asked about a structure, each time."""
    with suppress(OSError, ValueError):
        return [float(line) for line in (place / ASKED).read_text().splitlines()]
    return []


def python_path() -> str:
    """PYTHONPATH with which a labeller can import what this process can."""
    return os.pathsep.join(path for path in sys.path if path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
