"""The process that asks the oracle: one label after the other, each answer written at once.

It is a process of its own, in a session of its own. So a label that takes too long can be given up,
an oracle that ends its process does not end the loop, and a loop that is killed does not take down
a calculation that has run for hours: its answer is there when the loop goes on.

    python -m evenfield.simulation.learn.labeller FOLDER

FOLDER holds oracle.json and a folder with request.json for each label, see `labelling.py`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import FileError
from ...core.locks import LockedError, held
from ...data_pipelines.demo.oracles import RejectedStructure
from ...data_pipelines.enrich.label_oracles import label, new_calculator
from . import store


ORACLE = "oracle.json"
REQUEST = "request.json"
ANSWER = "answer.json"
# a line with the time for each time that the oracle was asked
ASKED = "asked"
LOCK = ".labeller.lock"
PROCESS = ".labeller"
# exit code where an answer could not be written, which is no fault of the structure
NOT_WRITTEN = 74


def main(folder: Path) -> int:
    """Answer all requests that have no answer; the exit code."""
    try:
        with held(folder / LOCK, LockedError("another process labels these", file=folder)):
            (folder / PROCESS).write_text(str(os.getpid()))
            oracle = store.read(folder / ORACLE)
            for request in sorted(folder.glob(f"*/{REQUEST}")):
                if not (request.parent / ANSWER).exists():
                    _answer(request, oracle)
    except LockedError:
        # it does all the work
        return 0
    except (OSError, FileError) as error:
        sys.stderr.write(f"{error}\n")
        return NOT_WRITTEN
    return 0


def _answer(request: Path, oracle: dict[str, Any]) -> None:
    """Ask the oracle about one structure, and write what it says."""
    atoms = store.from_json(store.read(request)["atoms"])
    with (request.parent / ASKED).open("a") as file:
        file.write(f"{time.time()}\n")
    began = time.monotonic()
    try:
        # a fresh one: a label must not depend on those before it
        calculator = new_calculator(oracle["oracle"], oracle["settings"])
        labelled = label(atoms, calculator, oracle["largest_force"])
    except RejectedStructure as rejected:
        answer: dict[str, Any] = {"failure": rejected.reason, "detail": rejected.detail}
    else:
        results = labelled.calc.results
        answer = {name: np.asarray(value).tolist() for name, value in results.items()}
    answer["seconds"] = round(time.monotonic() - began, 3)
    store.write(request.parent / ANSWER, answer)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
