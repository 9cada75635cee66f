"""Labels that are stored while an enrichment runs, so that an interruption costs at most a minute.

    OUT.unfinished/
        enrichment.json    identity of the enrichment: settings, data set, and code of the oracle
        labels-0000.json   the outcomes of some tasks, sealed; later files add to earlier ones

If the command is repeated, it uses the stored labels and makes only the rest. The folder is removed
when OUT is complete.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ...core.destination import DestinationError
from ...core.files import file_errors, write_atomically
from ...core.locks import LockedError, held
from ...core.seals import digest_of, sealed, unsealed


ABOUT = "enrichment.json"
FILES = "labels-*.json"
LOCK = ".lock"
# a file is written after this many outcomes or seconds
MOST_OUTCOMES = 200
SECONDS = 30.0


@dataclass(frozen=True)
class Made:
    """The outcome of a task: a labelled structure or None, and why candidates were refused."""

    element: int
    """Atomic number of the new element."""
    host: int
    """Atomic number of the element that it replaced."""
    atoms: Atoms | None
    """The structure with the oracle's labels; None if all candidates were refused."""
    source_id: str
    """Id of the training structure that was changed."""
    refused: tuple[str, ...]
    """The reason for each refused candidate."""
    failure: str = ""
    """The last error message of the oracle or of the relaxing calculator."""

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON content, without loss of precision."""
        content: dict[str, Any] = {
            "element": self.element,
            "host": self.host,
            "source_id": self.source_id,
            "refused": list(self.refused),
            "failure": self.failure,
            "atoms": None,
        }
        if self.atoms is not None:
            labels = {name: np.asarray(v).tolist() for name, v in self.atoms.calc.results.items()}
            content["atoms"] = {
                "numbers": self.atoms.numbers.tolist(),
                "positions": self.atoms.positions.tolist(),
                "cell": self.atoms.cell.array.tolist(),
                "pbc": self.atoms.pbc.tolist(),
                "labels": labels,
            }
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Made:
        """Inverse of `to_dict`."""
        about = dict(content)
        stored = about.pop("atoms")
        atoms = None
        if stored is not None:
            labels = stored.pop("labels")
            atoms = Atoms(**stored)
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return cls(**{**about, "refused": tuple(about["refused"])}, atoms=atoms)


class KeptLabels:
    """The folder of an unfinished enrichment."""

    def __init__(self, out: Path) -> None:
        """`out` is the folder of the future data set."""
        self.folder = out.with_name(f"{out.name}.unfinished")

    @contextmanager
    def open(self, belonging: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Labels]:
        """Open the labels of an enrichment, locked against other processes.

        belonging: identity of the enrichment, as JSON content.
        overwrite: remove labels of a different enrichment.

        Raises DestinationError if the folder holds labels of a different enrichment, and
        LockedError if another process has them open.
        """
        refusal = LockedError(
            "is written by another process", file=self.folder, remedy="wait until it has finished"
        )
        with held(self.folder / LOCK, refusal):
            about = self.folder / ABOUT
            if about.exists() and not self.belongs(belonging):
                if not overwrite:
                    raise DestinationError(
                        "holds labels of an enrichment with other data, other settings or another "
                        "oracle",
                        file=self.folder,
                        remedy="repeat that command, remove the folder, or choose another OUT",
                    )
                for file in self.folder.glob(FILES):
                    file.unlink()
            write_atomically(about, json.dumps(sealed(belonging)))
            yield Labels(self.folder)

    def belongs(self, belonging: Mapping[str, Any]) -> bool:
        """Whether the folder belongs to this enrichment."""
        about = self.folder / ABOUT
        if not about.is_file():
            return False
        with file_errors(about):
            content = unsealed(about.read_bytes())
        return content is not None and digest_of(content) == digest_of(belonging)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Labels:
    """The outcomes of tasks: `made` maps the number of a task to its outcome."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[int, Made] = {}
        self._waiting: dict[int, Made] = {}
        self._written = time.monotonic()
        for file in sorted(folder.glob(FILES)):
            with file_errors(file):
                content = unsealed(file.read_bytes())
            # the labels of a damaged file are ignored and made again
            for number, own in (content or {}).items():
                self.made[int(number)] = Made.from_dict(own)

    def add(self, number: int, made: Made) -> None:
        """Add an outcome; it is written to disk after MOST_OUTCOMES outcomes or SECONDS."""
        self.made[number] = made
        self._waiting[number] = made
        is_time = time.monotonic() - self._written > SECONDS
        if is_time or len(self._waiting) >= MOST_OUTCOMES:
            self.flush()

    def flush(self) -> None:
        """Write the outcomes that are not on disk yet."""
        if self._waiting:
            content = {str(number): made.to_dict() for number, made in self._waiting.items()}
            index = sum(1 for _ in self.folder.glob(FILES))
            file = self.folder / f"labels-{index:04d}.json"
            write_atomically(file, json.dumps(sealed(content)))
        self._waiting = {}
        self._written = time.monotonic()
