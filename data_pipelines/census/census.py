"""The census of a data set: counts by element and split, force RMS, levels of theory and E0.

All quantities are sums over flat Arrow columns, so censuses can be added, and shards or ranks can
be counted separately.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ase.data import chemical_symbols
from scipy.sparse import csr_array

from ..store.shards import (
    CONVERT_AGAIN,
    MOST_BYTES,
    BrokenDataSetError,
    read_info,
    read_json,
    scan_shard,
)
from ..structure import MAX_ATOMIC_NUMBER
from .domain import LevelDomainCount
from .energy_sketch import EnergySketch


# length of arrays indexed by atomic number; index 0 is unused
NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1
# structures counted together, to keep the number of calls small
ROWS_AT_ONCE = 2048
# structures counted at once in a dense table, which must fit into the CPU cache
ROWS_IN_CACHE = 256


class Census:
    """Counts over structures in Arrow tables; two censuses can be added with `+`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("atomic_numbers", "forces", "energy", "level_of_theory")

    def __init__(self) -> None:
        # split -> (119,): structures that contain each element, and atoms of each element
        self.structures: dict[str, np.ndarray] = {}
        self.atoms: dict[str, np.ndarray] = {}
        # train split, by element: sum of squared force components (eV^2/A^2), and their number
        self.force_square = _zeros()
        self.force_count = _zeros()
        # level of theory -> fit of E0 to the train split
        self.references: dict[str, ReferenceFit] = {}
        # level -> split -> number of structures
        self.level_counts: dict[str, dict[str, int]] = {}
        # level -> (119,): structures of the train split that contain each element
        self.level_elements: dict[str, np.ndarray] = {}
        # level -> sketch of its energies in all splits
        self.sketches: dict[str, EnergySketch] = {}
        # level -> domain of the train split; only a conversion fills it, as it knows the neighbours
        self.domains: dict[str, LevelDomainCount] = {}

    @property
    def levels(self) -> list[str]:
        """Levels of theory, sorted by number of structures in descending order."""

        def minus_structures(level: str) -> int:
            # the minus sign sorts in descending order; ties keep their original order
            return -sum(self.level_counts[level].values())

        return sorted(self.level_counts, key=minus_structures)

    def __iadd__(self, other: Census) -> Self:
        _add_counts(self.structures, other.structures)
        _add_counts(self.atoms, other.atoms)
        self.force_square += other.force_square
        self.force_count += other.force_count
        for level, reference in other.references.items():
            own_reference = self.references.setdefault(level, ReferenceFit())
            own_reference.merge(reference)

        for level, by_split in other.level_counts.items():
            own_counts = self.level_counts.setdefault(level, {})
            _add_counts(own_counts, by_split)
        _add_counts(self.level_elements, other.level_elements)
        for level, sketch in other.sketches.items():
            own_sketch = self.sketches.setdefault(level, EnergySketch())
            own_sketch += sketch
        for level, domain in other.domains.items():
            own_domain = self.domains.setdefault(level, LevelDomainCount())
            own_domain += domain
        return self

    def __add__(self, other: Census) -> Census:
        total = Census()
        total += self
        total += other
        return total

    def add_table(self, table: pa.Table, split: str) -> None:
        """Count the structures of a table with the columns COLUMNS, all of one split.

        Raises ValueError for a damaged table; `count_shards` adds the name of the file.
        """
        numbers = table["atomic_numbers"].combine_chunks()
        atomic_numbers = numbers.flatten().to_numpy()
        offsets = numbers.offsets.to_numpy()
        sizes = np.diff(offsets)
        if not len(sizes) or not sizes.all() or atomic_numbers.max() > MAX_ATOMIC_NUMBER:
            raise ValueError("structures without atoms or with an unknown atomic number")

        counts = compositions(atomic_numbers, sizes)
        # sparse entries: one for each element of each structure, with its number of atoms
        element = counts.indices
        structures = np.bincount(element, minlength=NUM_ELEMENTS)
        atoms = np.bincount(element, counts.data, minlength=NUM_ELEMENTS)
        _add_counts(self.structures, {split: structures})
        _add_counts(self.atoms, {split: atoms})

        # a model is normalised by training data only
        if split == "train":
            self._add_forces(table["forces"], atomic_numbers, sizes, atoms)
        self._add_levels(table, counts, split)

    def add_domains(self, table: pa.Table) -> None:
        """Add training structures to the domains of their levels.

        table: has the columns atomic_numbers and level_of_theory, and the columns boundary, pairs
            and pair_distances as in `StructureDomains`.
        """
        levels, codes = _levels_of(table)
        sizes = pc.list_value_length(table["atomic_numbers"]).to_numpy()
        boundaries = table["boundary"].to_numpy()
        pairs = table["pairs"].combine_chunks()
        num_pairs = np.diff(pairs.offsets.to_numpy())
        codes_of_pairs = pairs.flatten().to_numpy()
        distances = table["pair_distances"].combine_chunks().flatten().to_numpy()
        for code, level in enumerate(levels):
            own = codes == code
            if not own.any():
                continue
            own_pairs = np.repeat(own, num_pairs)
            self.domains.setdefault(level, LevelDomainCount()).add(
                boundaries[own], sizes[own], codes_of_pairs[own_pairs], distances[own_pairs]
            )

    def _add_levels(self, table: pa.Table, counts: csr_array, split: str) -> None:
        """Count the structures and energies of each level of theory."""
        names, codes = _levels_of(table)
        # to_numpy turns a null, a missing energy, into NaN
        energy = table["energy"].to_numpy()
        has_energy = ~np.isnan(energy)
        for code, level in enumerate(names):
            own = codes == code
            by_split = self.level_counts.setdefault(level, {})
            _add_counts(by_split, {split: int(own.sum())})
            if split == "train":
                own_entries = counts.indices
                # avoid a copy in the common case of a single level of theory
                if not own.all():
                    own_entries = own_entries[np.repeat(own, np.diff(counts.indptr))]
                present = np.bincount(own_entries, minlength=NUM_ELEMENTS)
                _add_counts(self.level_elements, {level: present})

            labelled = own & has_energy
            self.sketches.setdefault(level, EnergySketch()).add(energy[labelled])
            if split != "train" or not labelled.any():
                continue
            reference = self.references.setdefault(level, ReferenceFit())
            # avoid copies in the common case of a single level and no missing energies
            if labelled.all():
                reference.add(counts, energy)
            else:
                reference.add(counts[labelled], energy[labelled])

    def _add_forces(
        self,
        forces: pa.ChunkedArray,
        atomic_numbers: np.ndarray,
        sizes: np.ndarray,
        atoms: np.ndarray,
    ) -> None:
        """Add the squares and the number of force components by element.

        atomic_numbers: (sum N,) of all structures, concatenated. sizes: (S,) atoms per structure.
        atoms: (119,) atoms of each element, with or without forces.
        """
        starts = _starts(sizes)
        first = 0
        # single chunks fit into the cache
        for chunk in forces.chunks:
            last = first + len(chunk)
            own = atomic_numbers[starts[first] : starts[last]]
            if chunk.null_count:
                # a null contributes nothing to the flat column, so its atoms must not count
                has_forces = chunk.is_valid().to_numpy(zero_copy_only=False)
                labelled = np.repeat(has_forces, sizes[first:last])
                without = np.bincount(own[~labelled], minlength=NUM_ELEMENTS)
                atoms = atoms - without
                own = own[labelled]

            squares = _squared_norms(chunk)
            self.force_square += np.bincount(own, squares, NUM_ELEMENTS)
            first = last
        self.force_count += 3 * atoms

    def to_dict(self) -> dict[str, Any]:
        """A summary as JSON content: elements by symbol, energies in eV, forces in eV/A."""
        in_all_splits = sum(self.structures.values(), _zeros())
        present = np.flatnonzero(in_all_splits).tolist()

        per_element = {}
        for atomic_number in present:
            symbol = chemical_symbols[atomic_number]
            per_element[symbol] = {
                "structures": _of_element(self.structures, atomic_number),
                "atoms": _of_element(self.atoms, atomic_number),
                "force_rms": self._force_rms(atomic_number),
            }

        main_level = self._main_level()
        main_e0, _ = self.references.get(main_level, ReferenceFit()).solve()
        levels = {}
        for level in self.levels:
            # a level without training energies has an empty table of E0
            reference = self.references.get(level, ReferenceFit())
            structures = dict(self.level_counts[level])
            trained = self.level_elements.get(level, _zeros())
            elements = {chemical_symbols[z]: int(trained[z]) for z in np.flatnonzero(trained)}
            levels[level] = {
                "structures": structures,
                "train_elements": elements,
                "energy_sketch": self.sketches[level].to_list(),
                **reference.to_dict(main_e0 if level != main_level else None),
            }
            if level in self.domains:
                levels[level]["domain"] = self.domains[level].to_domain().model_dump(mode="json")
        return {"per_element": per_element, "levels_of_theory": levels}

    def _main_level(self) -> str:
        """The level with the most training energies; its E0 serve as a prior for other levels."""

        def energies(level: str) -> tuple[int, str]:
            # the name breaks ties, so that the order of merging does not matter
            return self.references[level].count, level

        return max(self.references, key=energies, default="")

    def _force_rms(self, atomic_number: int) -> float | None:
        """Root mean square of the force components of an element, eV/A; None without forces."""
        count = self.force_count[atomic_number]
        if not count:
            return None
        mean_square = self.force_square[atomic_number] / count
        return float(np.sqrt(mean_square))


class ReferenceFit:
    """Fit of reference energies E0 (eV per atom of each element) by ridge regression.

    Minimises

        sum_s (E_s - sum_z n_sz E0_z)^2 / N_s^2  +  RIDGE * sum_z A_zz (E0_z - prior_z)^2

    for structures s with energy E_s, N_s atoms and n_sz atoms of element z. The factor
    A_zz = sum_s (n_sz / N_s)^2 makes the ridge (the precision of the prior) equally strong for rare
    and common elements. The problem is solved twice. The prior of the first solution is the mean
    energy per atom, and the prior of the second is the first solution. This removes the bias of the
    ridge from all E0 that the data determine. An element is undetermined if the compositions leave
    its E0 to the prior.

    If a level of theory has few compositions, the prior decides most of its E0, and the mean energy
    is a poor prior: predictions for new slabs of OC20 were off by 1.7 eV/atom. For such a level,
    `solve` also tries the E0 of another level, plus a constant shift, as the mean of the prior. The
    precision of this prior, relative to the precision of the data, maximises the evidence (Bishop,
    Pattern Recognition and Machine Learning, section 3.5). The other level is used only if the
    evidence prefers it to the mean energy.
    """

    RIDGE: ClassVar[float] = 1e-6
    # an element is undetermined if its share in an undetermined combination exceeds this
    UNDETERMINED_SHARE: ClassVar[float] = 1e-4
    # precisions of the prior to try, relative to the precision of an energy per atom
    PRECISIONS: ClassVar[np.ndarray] = 10.0 ** np.arange(-12, 4.1, 0.5)

    def __init__(self) -> None:
        self.normal = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        self.moment = np.zeros(NUM_ELEMENTS)
        # sums over structures of E_s / N_s, and of its square
        self.energy_per_atom = 0.0
        self.energy_square = 0.0
        self.count = 0

    def add(self, counts: csr_array, energies: np.ndarray) -> None:
        """Add labelled structures.

        counts: (S, 119) atoms of each element. energies: (S,) in eV.
        """
        num_elements = np.diff(counts.indptr)
        sizes = np.add.reduceat(counts.data, counts.indptr[:-1])
        size_of_entry = np.repeat(sizes, num_elements)

        # n_sz / N_s and E_s / N_s
        share = counts.data / size_of_entry
        per_atom = energies / sizes
        self.normal += _sum_of_products(share, counts.indices, counts.indptr)
        # the loss divides by N_s^2: one factor is in `share`, the other in `per_atom`
        weighted = share * np.repeat(per_atom, num_elements)
        self.moment += np.bincount(counts.indices, weighted, NUM_ELEMENTS)
        self.energy_per_atom += float(per_atom.sum())
        self.energy_square += float(per_atom @ per_atom)
        self.count += len(energies)

    def merge(self, other: ReferenceFit) -> None:
        """Add the structures of another fit."""
        self.normal += other.normal
        self.moment += other.moment
        self.energy_per_atom += other.energy_per_atom
        self.energy_square += other.energy_square
        self.count += other.count

    def solve(
        self, another_level: Mapping[int, float] | None = None
    ) -> tuple[dict[int, float], list[int]]:
        """E0 by atomic number (eV), and the elements whose E0 the data do not determine.

        another_level: E0 of another level by atomic number (eV), which may serve as the prior.
        """
        present = np.flatnonzero(np.diag(self.normal))
        if not len(present):
            return {}, []
        normal = self.normal[np.ix_(present, present)]
        moment = self.moment[present]

        # scaled by A_zz, the ridge is the same for every element
        scale = np.sqrt(np.diag(normal))
        scales = np.outer(scale, scale)
        values, vectors = np.linalg.eigh(normal / scales)
        damped = vectors / (values + self.RIDGE)
        inverse = damped @ vectors.T / scales

        mean_energy = self.energy_per_atom / self.count
        e0 = np.full(len(present), mean_energy)
        for _ in range(2):
            residual = moment - normal @ e0
            e0 += inverse @ residual

        # The prior decides in directions whose eigenvalue is below the ridge. Elements with a share
        # in such a direction are undetermined.
        free_directions = vectors[:, values < self.RIDGE]
        has_share = np.abs(free_directions) > self.UNDETERMINED_SHARE
        undetermined = present[has_share.any(axis=1)]

        if another_level and len(undetermined):
            near, evidence = self._near(self._shifted(another_level, present), present)
            _, evidence_of_mean = self._near(np.full(len(present), mean_energy), present)
            if evidence > evidence_of_mean:
                e0 = near
        by_number = dict(zip(present.tolist(), e0.tolist(), strict=True))
        return by_number, undetermined.tolist()

    def _shifted(self, another_level: Mapping[int, float], present: np.ndarray) -> np.ndarray:
        """E0 (Z,) of another level, shifted by a constant so that the mean error is zero.

        Elements that the other level lacks get the mean of its E0. present: (Z,) atomic numbers.
        """
        mean = sum(another_level.values()) / len(another_level)
        e0 = np.array([another_level.get(number, mean) for number in present.tolist()])
        # each structure's shares sum to 1, so row sums are element shares summed over structures
        shares = self.normal[np.ix_(present, present)].sum(axis=1)
        return e0 + (self.energy_per_atom - shares @ e0) / self.count

    def _near(self, prior: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float]:
        """E0 (Z,) from a Gaussian prior with the mean `prior` (Z,), and the log evidence.

        For S energies with variance v and a prior precision of k / v, the log evidence is, up to a
        constant,

            -1/2 (S log v + sum_i log(1 + l_i / k)),    v = (r^2 - sum_i b_i^2 / (l_i + k)) / S

        where l_i are the eigenvalues of the normal matrix. r^2 is the sum of squared residuals of
        the prior, and b_i are the components of the residuals' moment along the eigenvectors.
        """
        normal = self.normal[np.ix_(present, present)]
        moment = self.moment[present]
        values, vectors = np.linalg.eigh(normal)
        values = np.maximum(values, 0.0)
        along = vectors.T @ (moment - normal @ prior)
        square = self.energy_square - 2 * prior @ moment + prior @ normal @ prior
        # The residual is a difference of large sums of squares, so it may consist of nothing but
        # rounding errors. It may also be exactly zero.
        rounding = max(1e-12 * self.energy_square, np.finfo(float).tiny)

        best = (-np.inf, prior)
        for precision in self.PRECISIONS:
            coefficients = along / (values + precision)
            variance = max(square - coefficients @ along, rounding) / self.count
            complexity = np.log1p(values / precision).sum()
            evidence = -0.5 * (self.count * np.log(variance) + complexity)
            if evidence > best[0]:
                best = (evidence, prior + vectors @ coefficients)
        evidence, e0 = best
        return e0, float(evidence)

    def to_dict(self, another_level: Mapping[int, float] | None = None) -> dict[str, Any]:
        """E0 by symbol (eV) and the symbols of undetermined elements, as JSON; see `solve`."""
        e0, undetermined = self.solve(another_level)
        return {
            "e0": {chemical_symbols[number]: value for number, value in e0.items()},
            "undetermined": [chemical_symbols[number] for number in undetermined],
        }


def compositions(atomic_numbers: np.ndarray, sizes: np.ndarray) -> csr_array:
    """Number of atoms of each element in each structure, (S, 119).

    atomic_numbers: (sum N,) of all structures, concatenated.
    sizes: (S,) number of atoms of each structure.
    """
    # number of columns of the dense table: up to the heaviest element that occurs
    width = int(atomic_numbers.max()) + 1
    starts = _starts(sizes)
    atoms = []
    columns = []
    elements = []
    for first in range(0, len(sizes), ROWS_IN_CACHE):
        own_sizes = sizes[first : first + ROWS_IN_CACHE]
        num_rows = len(own_sizes)
        own_numbers = atomic_numbers[starts[first] : starts[first + num_rows]]

        # flat index of each atom in a dense table of structures by elements
        row_start = np.arange(num_rows) * width
        place = np.repeat(row_start, own_sizes)
        place += own_numbers
        dense = np.bincount(place, minlength=num_rows * width)

        filled = np.flatnonzero(dense)
        # 32 bits are enough for the small table, and their division is faster
        row, column = np.divmod(filled.astype(np.int32), np.int32(width))
        atoms.append(dense[filled])
        columns.append(column)
        elements.append(np.bincount(row, minlength=num_rows))

    num_elements = np.concatenate(elements)
    row_starts = _starts(num_elements).astype(np.int32)
    column_of = np.concatenate(columns)
    data = np.concatenate(atoms).astype(np.float64)
    shape = (len(sizes), NUM_ELEMENTS)
    return csr_array((data, column_of, row_starts), shape=shape)


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Offsets (S + 1,) of concatenated lists of the given sizes (S,)."""
    ends = np.cumsum(sizes)
    return np.concatenate([[0], ends])


def _sum_of_products(share: np.ndarray, element: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Products of the shares of every two elements, summed over structures, (119, 119).

    share, element: (nnz,) values and columns of a CSR array. starts: (S + 1,) its row offsets.

    scipy's sparse product would give the same result, but needs two passes over a general layout.
    This function makes use of the fact that a row has only a few entries.
    """
    num_entries = np.diff(starts)
    most_entries = int(num_entries.max(initial=0))

    first = np.arange(len(share))
    # index of the last entry of the same structure
    last = np.repeat(starts[1:], num_entries) - 1
    products = []
    places = []
    # pairs of entries that are `step` apart, for all structures at once
    for step in range(most_entries):
        has_partner = first + step <= last[first]
        first = first[has_partner]
        second = first + step
        products.append(share[first] * share[second])

        # avoid overflow: the indices of a CSR array have 32 bits
        row = element[first].astype(np.int64)
        places.append(row * NUM_ELEMENTS + element[second])

    place = np.concatenate(places)
    product = np.concatenate(products)
    flat = np.bincount(place, product, NUM_ELEMENTS**2)
    # entries are sorted by element, so only the upper triangle is filled
    upper = flat.reshape(NUM_ELEMENTS, NUM_ELEMENTS)
    return upper + np.triu(upper, 1).T


def count_shards(paths: Iterable[Path]) -> Census:
    """Census of some shards of a data set.

    The censuses of disjoint sets of shards can be added. Raises BrokenDataSetError for a damaged
    shard.
    """
    census = Census()
    for path in paths:
        split = path.name.split("-")[0]
        tables = scan_shard(path, list(Census.COLUMNS), rows=ROWS_AT_ONCE)
        for table in _gathered(tables):
            try:
                census.add_table(table, split)
            except ValueError as error:
                raise BrokenDataSetError(
                    f"damaged ({error})", file=path, remedy=CONVERT_AGAIN
                ) from None
    return census


def read_census(folder: Path | str) -> dict[str, Any]:
    """Read census.json of a converted data set.

    Raises BrokenDataSetError if it is missing or damaged.
    """
    info = read_info(folder)

    path = Path(folder) / "census.json"
    if not path.is_file():
        raise BrokenDataSetError("missing or damaged", file=path, remedy=CONVERT_AGAIN)
    found, data = read_json(path, MOST_BYTES)

    is_whole = info["census_sha256"] == hashlib.sha256(data).hexdigest()
    try:
        census: dict[str, Any] = found
        # access these entries here, so that a damaged file is reported before it is used
        census["per_element"].items()
        for row in census["levels_of_theory"].values():
            row["train_elements"].items()
    except (KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise BrokenDataSetError("missing or damaged", file=path, remedy=CONVERT_AGAIN)
    return census


def _levels_of(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """The levels of theory in a table, and for each structure an index into them, (S,)."""
    levels = table["level_of_theory"].combine_chunks()
    if not pa.types.is_dictionary(levels.type):
        levels = levels.dictionary_encode()
    return levels.dictionary.to_pylist(), levels.indices.to_numpy()


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables until they have at least ROWS_AT_ONCE rows.

    Arrow yields one row group at a time, and counting so few rows at once is slow.
    """
    held: list[pa.Table] = []
    num_rows = 0
    for table in tables:
        held.append(table)
        num_rows += table.num_rows
        if num_rows >= ROWS_AT_ONCE:
            yield pa.concat_tables(held)
            held = []
            num_rows = 0
    if held:
        yield pa.concat_tables(held)


def _zeros() -> np.ndarray:
    """A zero for each element, (119,)."""
    return np.zeros(NUM_ELEMENTS)


def _of_element(by_split: dict[str, np.ndarray], atomic_number: int) -> dict[str, int]:
    """Split -> count of one element."""
    return {split: int(counts[atomic_number]) for split, counts in by_split.items()}


def _add_counts(total: dict[str, Any], further: dict[str, Any]) -> None:
    """Add the values of `further` to those of `total`, key by key, in place."""
    for split, counts in further.items():
        total[split] = total.get(split, 0) + counts


def _squared_norms(forces: pa.ListArray) -> np.ndarray:
    """Squared norms (sum N,) of the forces of some structures, eV^2/A^2."""
    components = forces.flatten().to_numpy().reshape(-1, 3)
    # a product with a vector of ones is twice as fast as a sum along the short axis
    return (components * components) @ np.ones(3, np.float32)
