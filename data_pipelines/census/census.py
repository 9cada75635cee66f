"""What a data set holds: counts and force RMS per element and split, levels of theory, reference energies E0.

Everything is a sum over flat Arrow columns, so two censuses add up: shards or ranks can count on their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from ase.data import chemical_symbols
from scipy.sparse import csr_array

from ..store.shards import BrokenDataSetError, read_info, scan_shard
from ..structure import MAX_ATOMIC_NUMBER


NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1  # index 0 is unused, so that Z is the index
ROWS_AT_ONCE = 2048  # structures whose columns are counted together: few calls
ROWS_IN_CACHE = (
    256  # structures whose table of counts still fits beside other programs' in the cache
)


class Census:
    """Counts over structures, taken from Arrow tables; two add up with `+`."""

    COLUMNS = ("atomic_numbers", "forces", "energy", "level_of_theory")

    def __init__(self) -> None:
        self.structures: dict[str, np.ndarray] = {}  # split -> (119,)
        self.atoms: dict[str, np.ndarray] = {}
        self.force_square = _per_element()  # eV^2/A^2 per component, train split
        self.force_count = _per_element()
        self.references: dict[str, ReferenceFit] = {}
        self.level_counts: dict[str, dict[str, int]] = {}

    @property
    def levels(self) -> list[str]:
        """Levels of theory, in the order of their number of structures."""
        return sorted(self.level_counts, key=lambda level: -sum(self.level_counts[level].values()))

    def __iadd__(self, other: Census) -> Self:
        for mine, theirs in ((self.structures, other.structures), (self.atoms, other.atoms)):
            for split, counts in theirs.items():
                mine[split] = mine.get(split, 0) + counts
        self.force_square += other.force_square
        self.force_count += other.force_count
        for level, reference in other.references.items():
            self.references.setdefault(level, ReferenceFit()).merge(reference)
        for level, counts_by_split in other.level_counts.items():
            mine_by_split = self.level_counts.setdefault(level, {})
            for split, count in counts_by_split.items():
                mine_by_split[split] = mine_by_split.get(split, 0) + count
        return self

    def __add__(self, other: Census) -> Census:
        total = Census()
        total += self
        total += other
        return total

    def add_table(self, table: pa.Table, split: str) -> None:
        """Count the structures of a table that has the columns COLUMNS of the canonical schema."""
        numbers = table["atomic_numbers"].combine_chunks()
        z, sizes = numbers.flatten().to_numpy(), np.diff(numbers.offsets.to_numpy())
        if not len(sizes) or not sizes.all() or z.max() > MAX_ATOMIC_NUMBER:
            raise ValueError("structures without atoms or with an unknown atomic number")
        counts = compositions(z, sizes)
        atoms = np.bincount(counts.indices, counts.data, minlength=NUM_ELEMENTS)
        self.structures[split] = self.structures.get(split, 0) + np.bincount(
            counts.indices, minlength=NUM_ELEMENTS
        )
        self.atoms[split] = self.atoms.get(split, 0) + atoms
        if split == "train":
            self._add_forces(table["forces"], z, sizes, atoms)
        levels = table["level_of_theory"].combine_chunks()
        levels = levels if pa.types.is_dictionary(levels.type) else levels.dictionary_encode()
        codes, energy = levels.indices.to_numpy(), table["energy"].to_numpy()
        for code, level in enumerate(levels.dictionary.to_pylist()):
            own = codes == code
            by_split = self.level_counts.setdefault(level, {})
            by_split[split] = by_split.get(split, 0) + int(own.sum())
            labelled = own & ~np.isnan(energy)
            if split == "train" and labelled.any():
                reference = self.references.setdefault(level, ReferenceFit())
                if labelled.all():  # the common case needs no copies
                    reference.add(counts, energy)
                else:
                    reference.add(counts[labelled], energy[labelled])

    def _add_forces(
        self, forces: pa.ChunkedArray, z: np.ndarray, sizes: np.ndarray, atoms: np.ndarray
    ) -> None:
        starts = np.concatenate([[0], np.cumsum(sizes)])
        first = 0
        for chunk in forces.chunks:  # chunk by chunk, in the cache
            last = first + len(chunk)
            own = z[starts[first] : starts[last]]
            if chunk.null_count:
                labelled = np.repeat(
                    chunk.is_valid().to_numpy(zero_copy_only=False), sizes[first:last]
                )
                atoms = atoms - np.bincount(own[~labelled], minlength=NUM_ELEMENTS)
                own = own[labelled]
            self.force_square += np.bincount(own, _squares(chunk), NUM_ELEMENTS)
            first = last
        self.force_count += 3 * atoms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; elements by symbol, energies in eV, forces in eV/A."""
        per_element = {}
        for z in np.flatnonzero(sum(self.structures.values(), _per_element())):
            per_element[chemical_symbols[z]] = {
                "structures": {split: int(n[z]) for split, n in self.structures.items()},
                "atoms": {split: int(n[z]) for split, n in self.atoms.items()},
                "force_rms": float(np.sqrt(self.force_square[z] / self.force_count[z]))
                if self.force_count[z]
                else None,
            }
        levels = {}
        for level in self.levels:
            reference = self.references.get(level, ReferenceFit())
            levels[level] = {"structures": dict(self.level_counts[level]), **reference.to_dict()}
        return {"per_element": per_element, "levels_of_theory": levels}


class ReferenceFit:
    """Reference energies E0 (eV per atom of each element) by ridge least squares on composition.

    Minimises sum_s (E_s - sum_z n_sz E0_z)^2 / N_s^2 + ridge * sum_z A_zz (E0_z - prior_z)^2, where
    A_zz = sum_s (n_sz / N_s)^2, so that the ridge weighs on a rare element no more than on a common one.  The
    prior is the mean energy per atom, then once more the first solution, which takes the ridge's bias away
    where the data speak.  An element is undetermined when the compositions leave its E0 to the ridge.
    """

    RIDGE = 1e-6

    def __init__(self) -> None:
        self.normal = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        self.moment = np.zeros(NUM_ELEMENTS)
        self.energy_per_atom = 0.0
        self.count = 0

    def add(self, counts: csr_array, energies: np.ndarray) -> None:
        """Count labelled structures: atoms of each element (S, 119) and energies (S,) in eV."""
        num_elements = np.diff(counts.indptr)
        sizes = np.add.reduceat(counts.data, counts.indptr[:-1])
        share = counts.data / np.repeat(sizes, num_elements)
        per_atom = energies / sizes
        self.normal += _gram(share, counts.indices, counts.indptr)
        self.moment += np.bincount(
            counts.indices, share * np.repeat(per_atom, num_elements), NUM_ELEMENTS
        )
        self.energy_per_atom += float(per_atom.sum())
        self.count += len(energies)

    def merge(self, other: ReferenceFit) -> None:
        """Add the structures that another has counted."""
        self.normal += other.normal
        self.moment += other.moment
        self.energy_per_atom += other.energy_per_atom
        self.count += other.count

    def solve(self) -> tuple[dict[int, float], list[int]]:
        """E0 by atomic number, and the elements that the data leave undetermined."""
        present = np.flatnonzero(np.diag(self.normal))
        if not len(present):
            return {}, []
        normal = self.normal[np.ix_(present, present)]
        own = np.sqrt(np.diag(normal))
        values, vectors = np.linalg.eigh(normal / np.outer(own, own))
        inverse = (vectors / (values + self.RIDGE)) @ vectors.T / np.outer(own, own)
        e0 = np.full(len(present), self.energy_per_atom / self.count)
        for _ in range(2):
            e0 += inverse @ (self.moment[present] - normal @ e0)
        free = np.abs(vectors[:, values < self.RIDGE]) > 1e-4
        undetermined = present[free.any(axis=1)]
        return dict(zip(present.tolist(), e0.tolist(), strict=True)), [int(z) for z in undetermined]

    def to_dict(self) -> dict[str, Any]:
        """E0 by symbol (eV) and the symbols of undetermined elements."""
        e0, undetermined = self.solve()
        return {
            "e0": {chemical_symbols[z]: value for z, value in e0.items()},
            "undetermined": [chemical_symbols[z] for z in undetermined],
        }


def _per_element() -> np.ndarray:
    return np.zeros(NUM_ELEMENTS)


def _squares(forces: pa.ListArray) -> np.ndarray:
    """Squared norms (sum N,) of the forces of some structures."""
    components = forces.flatten().to_numpy().reshape(-1, 3)
    return (components * components) @ np.ones(3, np.float32)


def compositions(z: np.ndarray, sizes: np.ndarray) -> csr_array:
    """Atoms of each element in each structure, (S, 119)."""
    width = int(z.max()) + 1
    starts = np.concatenate([[0], np.cumsum(sizes)])
    atoms, columns, elements = [], [], []
    for first in range(0, len(sizes), ROWS_IN_CACHE):
        own = sizes[first : first + ROWS_IN_CACHE]
        cell = np.repeat(np.arange(len(own)) * width, own)
        cell += z[starts[first] : starts[first + len(own)]]
        dense = np.bincount(cell, minlength=len(own) * width)
        filled = np.flatnonzero(dense)
        row, column = np.divmod(filled.astype(np.int32), np.int32(width))
        atoms.append(dense[filled])
        columns.append(column)
        elements.append(np.bincount(row, minlength=len(own)))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(elements))]).astype(np.int32)
    data = np.concatenate(atoms).astype(np.float64)
    return csr_array((data, np.concatenate(columns), ends), shape=(len(sizes), NUM_ELEMENTS))


def _gram(share: np.ndarray, element: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Products of the shares (nnz,) of every two elements of a structure, summed over structures: (119, 119).

    scipy's sparse product does the same in two passes over a general layout; rows here have a few entries.
    """
    first = np.arange(len(share))
    last = np.repeat(starts[1:], np.diff(starts)) - 1  # of the same structure
    products, cells = [], []
    for step in range(int(np.diff(starts).max(initial=0))):
        first = first[first + step <= last[first]]
        second = first + step
        products.append(share[first] * share[second])
        cells.append(element[first].astype(np.int64) * NUM_ELEMENTS + element[second])
    upper = np.bincount(np.concatenate(cells), np.concatenate(products), NUM_ELEMENTS**2)
    upper = upper.reshape(NUM_ELEMENTS, NUM_ELEMENTS)
    return upper + np.triu(upper, 1).T


def count_shards(paths: Iterable[Path]) -> Census:
    """Census of some shards of a data set, read column by column; those of all ranks add up to the whole."""
    census = Census()
    for path in paths:
        split = path.name.split("-")[0]
        for table in _gathered(scan_shard(path, list(Census.COLUMNS), rows=ROWS_AT_ONCE)):
            try:
                census.add_table(table, split)
            except ValueError as error:
                raise BrokenDataSetError(
                    f"{path}: damaged ({error}): convert the source again"
                ) from None
    return census


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of ROWS_AT_ONCE rows or a little more: Arrow stops at every row group, and counting so few is slow."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= ROWS_AT_ONCE:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def read_census(folder: Path | str) -> dict[str, Any]:
    """The census that was written with a converted data set."""
    read_info(folder)
    path = Path(folder) / "census.json"
    try:
        census = json.loads(path.read_text())
        census["per_element"].items(), census["levels_of_theory"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BrokenDataSetError(f"{path}: missing or damaged: convert the source again") from None
    return census
