"""What the loop keeps on disk: JSON files, each written at once and sealed with a checksum.

    learn.json                 the model, the structures and the settings
    rounds/000/walk-000.json   where a simulation went, and where it goes on
    rounds/000/chosen.json     the structures to label
    rounds/000/labels/job.json the name of the job whose tasks label, with labels.sbatch
    rounds/000/labels/000/     request.json, asked, answer.json: one label
    rounds/000/learned.json    the strategy by which its model learns, and why
    rounds/000/model/OUT/      the model after the round, named as the loop
    rounds/000/round.json      what the round did; with it the round is over

A step whose file exists is never done again, and every step follows from the files before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ...core.errors import EvenfieldError
from ...core.files import file_errors, write_atomically
from ...core.seals import digest_of, sealed, unsealed


# the remedy for a damaged file of a round
OF_A_ROUND = "restore it, or remove the folder of its round and the later ones"


class DamagedStateError(EvenfieldError):
    """A file of the loop that is not what was written."""


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its seal, whole or not at all."""
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(sealed(content), allow_nan=False))


def read(path: Path, remedy: str = OF_A_ROUND) -> dict[str, Any]:
    """Read what `write` has written. Raises DamagedStateError, with `remedy`, for anything else."""
    with file_errors(path):
        text = path.read_bytes()
    content = unsealed(text)
    if content is None:
        raise DamagedStateError(
            "does not match its checksum: it is damaged, or was edited",
            file=path,
            remedy=remedy,
        )
    return content


def as_json(atoms: Atoms) -> dict[str, Any]:
    """A structure with its momenta. JSON keeps every bit of a number."""
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "momenta": atoms.get_momenta().tolist() if atoms.has("momenta") else None,
    }


def from_json(content: Mapping[str, Any]) -> Atoms:
    """Inverse of `as_json`."""
    atoms = Atoms(
        content["numbers"], content["positions"], cell=content["cell"], pbc=content["pbc"]
    )
    if content["momenta"] is not None:
        atoms.set_momenta(np.array(content["momenta"]))
    return atoms


def digest(contents: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of several JSON objects."""
    joined = "".join(digest_of(content) for content in contents)
    return hashlib.sha256(joined.encode()).hexdigest()
