"""The user's own structures in place of the built-in systems (the setting `structures=`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms

from ...core.files import file_errors, file_sha256
from ...data_pipelines.sources.ase_files import read_frames
from ..check import CheckError
from .systems import HYDROGEN_STEP, MOLECULE_STEP, STEP, System


# Limits, because every structure is simulated several times and all pairs of atoms are compared.
MOST_STRUCTURES = 50
MOST_ATOMS = 1000

# A crystal is repeated until it has about as many atoms as the built-in systems. The temperature of
# a few atoms fluctuates so much that it could be mistaken for an explosion.
FEWEST_ATOMS = 24
SAME_PLACE = 0.01  # A
# The check for fused atoms needs at least one distance.
FEWEST_OF_MOLECULE = 2


def systems_of_file(path: Path) -> list[System]:
    """Read structures from any file that ASE reads; small crystals are repeated.

    Raises CheckError, with file and record, for a structure that cannot be simulated, and
    SourceError if the file cannot be read.
    """
    frames = read_frames(path)
    if len(frames) > MOST_STRUCTURES:
        raise CheckError(
            f"holds {len(frames)} structures, more than the {MOST_STRUCTURES} that are simulated",
            file=path,
            remedy="write those that matter into a file of their own",
        )
    systems = []
    for number, frame in enumerate(frames):
        _check_frame(frame, path, number)
        atoms = _repeated(_plain(frame))
        name = f"{path.stem} {number}, {frame.get_chemical_formula(empirical=True)}"
        systems.append(
            System(name, atoms.copy, _time_step(atoms), is_crystal=bool(atoms.pbc.all()))
        )
    return systems


def digest_of_file(path: Path) -> str:
    """SHA-256 digest of the content of a file."""
    with file_errors(path):
        return file_sha256(path)


def _check_frame(frame: Atoms, path: Path, number: int) -> None:
    problem = None
    if not np.isfinite(frame.positions).all() or not np.isfinite(frame.cell.array).all():
        problem = "positions or cell are not finite"
    elif frame.pbc.any() and frame.cell.rank < 3:
        problem = "is periodic, and its cell has no volume"
    elif not frame.pbc.any() and len(frame) < FEWEST_OF_MOLECULE:
        problem = "is a single atom, which does not move by itself"
    elif len(frame) > MOST_ATOMS:
        problem = f"has {len(frame)} atoms, more than {MOST_ATOMS}"
    elif _smallest_distance(frame) < SAME_PLACE:
        problem = "has two atoms in one place"
    if problem is not None:
        raise CheckError(
            problem, file=path, record=number, remedy="mend the structure, or leave it out"
        )


def _smallest_distance(frame: Atoms) -> float:
    """Smallest distance of two atoms in A, with periodic images; infinite for a single atom."""
    distances: np.ndarray = frame.get_all_distances(mic=True)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def _plain(frame: Atoms) -> Atoms:
    """A copy of the atoms without results, momenta, constraints and info."""
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def _repeated(atoms: Atoms) -> Atoms:
    """Repeat a crystal along its shortest edge until it has at least FEWEST_ATOMS atoms."""
    if not atoms.pbc.all():
        return atoms
    repeats = np.ones(3, int)
    while len(atoms) * repeats.prod() < FEWEST_ATOMS:
        repeats[np.argmin(atoms.cell.lengths() * repeats)] += 1
    return atoms * repeats


def _time_step(atoms: Atoms) -> float:
    """The usual time step in fs: short for hydrogen and for the stiff bonds of molecules."""
    if "H" in atoms.symbols:
        return HYDROGEN_STEP
    return STEP if atoms.pbc.any() else MOLECULE_STEP
