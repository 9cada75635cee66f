"""The two arms of the crossover laboratory.

Every chosen element is rare in one arm and common in the other.
Test and validation structures are the same in both arms, so an element is compared with itself.
Structures are either clusters that are made here, one cation each, or those of a converted set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from rich.progress import track

from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.demo.clusters import cut_from_crystal
from evenfield.data_pipelines.demo.geometry import (
    finished,
    has_close_contact,
    mix_in,
    stretched,
)
from evenfield.data_pipelines.demo.oracles import GFN2_LEVEL, RejectedStructure, label
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure


# from every block of the periodic table, so that most have a relative on the other side
_PERIODIC_TABLE = """
Li Na K Mg Ca Sr Sc Ti V Cr Mn Fe
Co Ni Cu Zn Al Ga Zr Mo Ag Cd In Sn
"""
CATIONS = _PERIODIC_TABLE.split()
ANIONS = ["O", "F", "Cl", "S", "N", "H"]
FEWEST_ATOMS, MOST_ATOMS = 6, 12

NUM_TEST = 30
NUM_VALID = 3
COMMON = 160
RARE = 5


def labelled_clusters(path: Path) -> list[Structure]:
    """Clusters of one cation and one to three anions at GFN2-xTB, made once and kept in `path`."""
    if not path.is_file():
        frames = []
        for cation in track(CATIONS, "labelling clusters"):
            for number in range(NUM_TEST + NUM_VALID + COMMON):
                frames.append(_labelled_cluster(cation, number))
        ase.io.write(path, frames)

    structures = []
    for atoms in ase.io.read(path, ":"):
        name = atoms.info["structure_id"]
        number = int(name.rsplit("-", 1)[1])
        structures.append(
            Structure.from_atoms(
                atoms,
                GFN2_LEVEL,
                name,
                name,
                split=_split_of(number),
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
            )
        )
    return structures


def thinned(
    structures: Sequence[Structure], elements: Sequence[str], rare: Sequence[str], seed: int
) -> list[Structure]:
    """All structures, except that training has each of `rare` in at most RARE structures.

    Training structures with chosen elements of both sides are in neither arm, because an arm must
    not have more of the common elements than the other one.
    """
    rare_numbers = {atomic_numbers[symbol] for symbol in rare}
    common_numbers = {atomic_numbers[symbol] for symbol in elements} - rare_numbers
    left = dict.fromkeys(rare_numbers, RARE)
    kept = []
    for index in np.random.default_rng(seed).permutation(len(structures)):
        structure = structures[index]
        if structure.split == "train":
            own = set(structure.elements.tolist())
            own_rare = own & rare_numbers
            if own_rare and (own & common_numbers or min(left[z] for z in own_rare) == 0):
                continue
            for number in own_rare:
                left[number] -= 1
        kept.append(structure)
    return kept


def write_arm(structures: Iterable[Structure], folder: Path) -> None:
    """Write a converted data set with the splits that the structures state."""
    origin = {"file": f"evenness_lab {folder.name}", "sha256": folder.name}
    write_data_set(structures, folder, origin, ConvertConfig())


def structures_of(folder: Path) -> list[Structure]:
    """All structures of a converted set, with their splits."""
    found = []
    for split in ("train", "valid", "test"):
        for structure in iter_structures(folder, split):
            found.append(replace(structure, split=split))
    return found


def differences(structures: Sequence[Structure], oracle: str) -> list[Structure]:
    """The structures with energies and forces minus those of an oracle of `data enrich`.

    A structure that the oracle cannot label is left out.
    """
    found = []
    for structure in track(structures, f"labelling with {oracle}"):
        try:
            cheap = label(structure.to_atoms(), oracle)
        except RejectedStructure:
            continue
        assert structure.energy is not None and structure.forces is not None
        energy = structure.energy - cheap.get_potential_energy()
        forces = structure.forces - cheap.get_forces()
        found.append(structure.with_labels(energy=energy, forces=forces))
    return found


def elements_to_thin(structures: Sequence[Structure], fewest: int, most_share: float) -> list[str]:
    """Elements with at least `fewest` training structures, in at most `most_share` of them.

    Of these, only the ones with 30 test atoms or more can be judged.
    """
    from ase.data import chemical_symbols

    train = np.zeros(len(chemical_symbols), dtype=int)
    test_atoms = np.zeros(len(chemical_symbols), dtype=int)
    num_train = 0
    for structure in structures:
        if structure.split == "train":
            train[structure.elements] += 1
            num_train += 1
        elif structure.split == "test":
            np.add.at(test_atoms, structure.atomic_numbers, 1)
    chosen = (train >= fewest) & (train <= most_share * num_train) & (test_atoms >= 30)
    return [chemical_symbols[number] for number in np.flatnonzero(chosen)]


def _split_of(number: int) -> str:
    if number < NUM_TEST:
        return "test"
    return "valid" if number < NUM_TEST + NUM_VALID else "train"


def _labelled_cluster(cation: str, number: int) -> Atoms:
    """The first candidate that gets a label; everything follows from cation and number."""
    rng = np.random.default_rng([atomic_numbers[cation], number])
    while True:
        candidate = _cluster(rng, cation)
        if has_close_contact(candidate):
            continue
        try:
            atoms = label(candidate, GFN2_LEVEL)
        except RejectedStructure:
            continue
        atoms.info["structure_id"] = f"{cation}-{number}"
        return atoms


def _cluster(rng: np.random.Generator, cation: str) -> Atoms:
    anions = rng.permutation(ANIONS)[: rng.integers(1, 4)].tolist()
    num_atoms = int(rng.integers(FEWEST_ATOMS, MOST_ATOMS + 1))
    atoms = cut_from_crystal(rng, cation, anions[0], num_atoms)
    pure = atoms.copy()
    for guest in anions[1:]:
        mix_in(rng, atoms, anions[0], guest, rng.uniform(0.2, 0.6))
    if len(anions) > 1:
        atoms.positions = stretched(pure, atoms)
    return finished(rng, atoms, "cluster", rattle=rng.uniform(0.02, 0.1))
