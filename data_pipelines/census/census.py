"""What a data set holds: counts and force RMS by element and split, levels of theory, E0.

Everything is a sum over flat Arrow columns, so two censuses add up: shards or ranks can be counted
separately.
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


# index 0 is unused, so that Z is the index
NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1
# structures whose columns are counted together, so that calls are few
ROWS_AT_ONCE = 2048
# structures whose dense table of counts stays in the cache
ROWS_IN_CACHE = 256


class Census:
    """Counts over structures, taken from Arrow tables; two add up with `+`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("atomic_numbers", "forces", "energy", "level_of_theory")

    def __init__(self) -> None:
        # split -> (119,)
        self.structures: dict[str, np.ndarray] = {}
        self.atoms: dict[str, np.ndarray] = {}
        # of the train split: sum of squared components in eV^2/A^2, and their number
        self.force_square = _zeros()
        self.force_count = _zeros()
        # level of theory -> ...
        self.references: dict[str, ReferenceFit] = {}
        self.level_counts: dict[str, dict[str, int]] = {}
        # level -> (119,): structures of the train split
        self.level_elements: dict[str, np.ndarray] = {}
        # level -> which energies it has, in any split
        self.sketches: dict[str, EnergySketch] = {}
        # of the train split; only a conversion, which knows the neighbours, fills it
        self.domains: dict[str, LevelDomainCount] = {}

    @property
    def levels(self) -> list[str]:
        """Levels of theory, the one with the most structures first."""

        def minus_structures(level: str) -> int:
            # the sign makes an ascending sort a descending one, which keeps ties in their order
            return -sum(self.level_counts[level].values())

        return sorted(self.level_counts, key=minus_structures)

    def __iadd__(self, other: Census) -> Self:
        _add_counts(self.structures, other.structures)
        _add_counts(self.atoms, other.atoms)
        self.force_square += other.force_square
        self.force_count += other.force_count
        # a level of theory that only the other census has starts from nothing
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
        """Count the structures of a table that has COLUMNS.

        Raises ValueError for a damaged table; `count_shards` knows the file and names it.
        """
        numbers = table["atomic_numbers"].combine_chunks()
        atomic_numbers = numbers.flatten().to_numpy()
        offsets = numbers.offsets.to_numpy()
        sizes = np.diff(offsets)
        if not len(sizes) or not sizes.all() or atomic_numbers.max() > MAX_ATOMIC_NUMBER:
            raise ValueError("structures without atoms or with an unknown atomic number")

        counts = compositions(atomic_numbers, sizes)
        # a structure has one entry for each of its elements, whose value is the number of atoms
        element = counts.indices
        structures = np.bincount(element, minlength=NUM_ELEMENTS)
        atoms = np.bincount(element, counts.data, minlength=NUM_ELEMENTS)
        _add_counts(self.structures, {split: structures})
        _add_counts(self.atoms, {split: atoms})

        # only training data may decide what a model is normalised by
        if split == "train":
            self._add_forces(table["forces"], atomic_numbers, sizes, atoms)
        self._add_levels(table, counts, split)

    def add_domains(self, table: pa.Table) -> None:
        """Count the domains of training structures.

        table: with atomic_numbers, level_of_theory, and boundary, pairs and pair_distances as in
            `StructureDomains`.
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
        """Structures of each level of theory, and their energies."""
        names, codes = _levels_of(table)
        # numpy has no null: a missing energy is NaN
        energy = table["energy"].to_numpy()
        has_energy = ~np.isnan(energy)
        for code, level in enumerate(names):
            own = codes == code
            by_split = self.level_counts.setdefault(level, {})
            _add_counts(by_split, {split: int(own.sum())})
            if split == "train":
                own_entries = counts.indices
                # the common case, one level of theory, needs no copy
                if not own.all():
                    own_entries = own_entries[np.repeat(own, np.diff(counts.indptr))]
                present = np.bincount(own_entries, minlength=NUM_ELEMENTS)
                _add_counts(self.level_elements, {level: present})

            labelled = own & has_energy
            self.sketches.setdefault(level, EnergySketch()).add(energy[labelled])
            if split != "train" or not labelled.any():
                continue
            reference = self.references.setdefault(level, ReferenceFit())
            # the common case, one level of theory and all energies, needs no copies
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
        """Sum of squares and number of force components by element.

        atoms: (119,) atoms of each element, with or without forces.
        """
        starts = _starts(sizes)
        first = 0
        # chunk by chunk, which stay in the cache
        for chunk in forces.chunks:
            last = first + len(chunk)
            own = atomic_numbers[starts[first] : starts[last]]
            if chunk.null_count:
                # a null has no components in the flat column, so its atoms must not count either
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
        """JSON-ready summary; elements by symbol, energies in eV, forces in eV/A."""
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
        """The level with the most training energies, whose E0 helps to fit those of the others."""

        def energies(level: str) -> tuple[int, str]:
            # names break a tie, so that the order of merging does not matter
            return self.references[level].count, level

        return max(self.references, key=energies, default="")

    def _force_rms(self, atomic_number: int) -> float | None:
        """Root mean square of a force component, eV/A; None without any."""
        count = self.force_count[atomic_number]
        if not count:
            return None
        mean_square = self.force_square[atomic_number] / count
        return float(np.sqrt(mean_square))


class ReferenceFit:
    """Reference energies E0 (eV per atom of each element) by ridge least squares on composition.

    Minimises

        sum_s (E_s - sum_z n_sz E0_z)^2 / N_s^2  +  RIDGE * sum_z A_zz (E0_z - prior_z)^2

    where A_zz = sum_s (n_sz / N_s)^2, so that the ridge (the precision of the prior) weighs as much
    on a rare element as on a common one. The prior is the mean energy per atom in a first solution,
    and that solution in a second, which removes the bias of the ridge where the data determine E0.
    An element is undetermined when the compositions leave its E0 to the prior.

    A level of theory of few compositions leaves most of its E0 to the prior, and the mean energy is
    a bad one: it put new slabs of OC20 1.7 eV/atom off. There, `solve` also tries another level,
    whose E0 are moved by one shift, as the prior mean. The precision of that prior, relative to
    that of the data, maximises the evidence (Bishop, Pattern Recognition and Machine Learning,
    section 3.5). The other level is used only where the evidence prefers it to the mean energy.
    """

    RIDGE: ClassVar[float] = 1e-6
    # share of an element in an undetermined combination of elements, above which it counts as such
    UNDETERMINED_SHARE: ClassVar[float] = 1e-4
    # precisions of the prior that are tried, relative to that of an energy per atom
    PRECISIONS: ClassVar[np.ndarray] = 10.0 ** np.arange(-12, 4.1, 0.5)

    def __init__(self) -> None:
        self.normal = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        self.moment = np.zeros(NUM_ELEMENTS)
        # sums over structures of E_s / N_s, and of its square
        self.energy_per_atom = 0.0
        self.energy_square = 0.0
        self.count = 0

    def add(self, counts: csr_array, energies: np.ndarray) -> None:
        """Count labelled structures: atoms of each element (S, 119) and energies (S,) in eV."""
        num_elements = np.diff(counts.indptr)
        sizes = np.add.reduceat(counts.data, counts.indptr[:-1])
        size_of_entry = np.repeat(sizes, num_elements)

        # n_sz / N_s and E_s / N_s
        share = counts.data / size_of_entry
        per_atom = energies / sizes
        self.normal += _sum_of_products(share, counts.indices, counts.indptr)
        # the division by N_s, squared in the loss, is in `share` and `per_atom`
        weighted = share * np.repeat(per_atom, num_elements)
        self.moment += np.bincount(counts.indices, weighted, NUM_ELEMENTS)
        self.energy_per_atom += float(per_atom.sum())
        self.energy_square += float(per_atom @ per_atom)
        self.count += len(energies)

    def merge(self, other: ReferenceFit) -> None:
        """Add the structures that another fit has counted."""
        self.normal += other.normal
        self.moment += other.moment
        self.energy_per_atom += other.energy_per_atom
        self.energy_square += other.energy_square
        self.count += other.count

    def solve(
        self, another_level: Mapping[int, float] | None = None
    ) -> tuple[dict[int, float], list[int]]:
        """E0 by atomic number (eV), and the elements whose E0 the data do not determine.

        another_level: its E0 by atomic number, a prior that the fit may use.
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

        # Directions with an eigenvalue below the ridge are left to the prior, and so is every
        # element with a share in one of them.
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
        """E0 (Z,) of another level plus the shift that leaves a mean error of zero.

        Elements that the other level lacks get the mean of the others.
        """
        mean = sum(another_level.values()) / len(another_level)
        e0 = np.array([another_level.get(number, mean) for number in present.tolist()])
        # the shares of a structure add up to 1: row sums are the shares summed over structures
        shares = self.normal[np.ix_(present, present)].sum(axis=1)
        return e0 + (self.energy_per_atom - shares @ e0) / self.count

    def _near(self, prior: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float]:
        """E0 (Z,) that a Gaussian prior around `prior` gives, and the logarithm of its evidence.

        The evidence, up to a constant, for S energies with the variance v and a prior precision of
        k / v is

            -1/2 (S log v + sum_i log(1 + l_i / k)),    v = (r^2 - sum_i b_i^2 / (l_i + k)) / S

        where l_i are the eigenvalues of the normal matrix, b_i the components of the moment of what
        the prior leaves of the energies, and r^2 the sum of the squares of the latter.
        """
        normal = self.normal[np.ix_(present, present)]
        moment = self.moment[present]
        values, vectors = np.linalg.eigh(normal)
        values = np.maximum(values, 0.0)
        along = vectors.T @ (moment - normal @ prior)
        square = self.energy_square - 2 * prior @ moment + prior @ normal @ prior
        # Sums of squares of total energies cancel down to their last digits. They may also be zero.
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
        """E0 by symbol (eV) and the symbols of undetermined elements; see `solve`."""
        e0, undetermined = self.solve(another_level)
        return {
            "e0": {chemical_symbols[number]: value for number, value in e0.items()},
            "undetermined": [chemical_symbols[number] for number in undetermined],
        }


def compositions(atomic_numbers: np.ndarray, sizes: np.ndarray) -> csr_array:
    """Atoms of each element in each structure, (S, 119).

    atomic_numbers: (sum N,) of the structures, end to end.  sizes: (S,) atoms of each.
    """
    # of the dense table: the heaviest element that occurs is its last column
    width = int(atomic_numbers.max()) + 1
    starts = _starts(sizes)
    atoms = []
    columns = []
    elements = []
    for first in range(0, len(sizes), ROWS_IN_CACHE):
        own_sizes = sizes[first : first + ROWS_IN_CACHE]
        num_rows = len(own_sizes)
        own_numbers = atomic_numbers[starts[first] : starts[first + num_rows]]

        # place of each atom in a dense table of structures by elements
        row_start = np.arange(num_rows) * width
        place = np.repeat(row_start, own_sizes)
        place += own_numbers
        dense = np.bincount(place, minlength=num_rows * width)

        filled = np.flatnonzero(dense)
        # 32 bits are enough for the small table, and divide faster than 64
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
    """Where each of some lists that lie end to end begins, and the end of the last, (S + 1,)."""
    ends = np.cumsum(sizes)
    return np.concatenate([[0], ends])


def _sum_of_products(share: np.ndarray, element: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Products of the shares of every two elements, summed over structures, (119, 119).

    share, element: (nnz,) as in a CSR array with row starts (S + 1,). scipy's sparse product does
    the same in two passes over a general layout; here a row has a few entries only.
    """
    num_entries = np.diff(starts)
    most_entries = int(num_entries.max(initial=0))

    first = np.arange(len(share))
    # last entry of the same structure
    last = np.repeat(starts[1:], num_entries) - 1
    products = []
    places = []
    # pairs of entries that are `step` apart, for all structures at once
    for step in range(most_entries):
        has_partner = first + step <= last[first]
        first = first[has_partner]
        second = first + step
        products.append(share[first] * share[second])

        # 64 bits: the indices of a CSR array have 32
        row = element[first].astype(np.int64)
        places.append(row * NUM_ELEMENTS + element[second])

    place = np.concatenate(places)
    product = np.concatenate(products)
    flat = np.bincount(place, product, NUM_ELEMENTS**2)
    # entries are sorted by element, so only the upper triangle is filled
    upper = flat.reshape(NUM_ELEMENTS, NUM_ELEMENTS)
    return upper + np.triu(upper, 1).T


def count_shards(paths: Iterable[Path]) -> Census:
    """Census of some shards of a data set; the censuses of all ranks add up to the whole.

    Raises BrokenDataSetError for a damaged shard.
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
    """The census that was written with a converted data set.

    Raises BrokenDataSetError where it is missing or damaged.
    """
    info = read_info(folder)

    path = Path(folder) / "census.json"
    if not path.is_file():
        raise BrokenDataSetError("missing or damaged", file=path, remedy=CONVERT_AGAIN)
    found, data = read_json(path, MOST_BYTES)

    is_whole = info["census_sha256"] == hashlib.sha256(data).hexdigest()
    try:
        census: dict[str, Any] = found
        # touched here, so that a damaged file is named before anything is computed from it
        census["per_element"].items()
        for row in census["levels_of_theory"].values():
            row["train_elements"].items()
    except (KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise BrokenDataSetError("missing or damaged", file=path, remedy=CONVERT_AGAIN)
    return census


def _levels_of(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """The levels of theory of some structures, and which of them each structure has, (S,)."""
    levels = table["level_of_theory"].combine_chunks()
    if not pa.types.is_dictionary(levels.type):
        levels = levels.dictionary_encode()
    return levels.dictionary.to_pylist(), levels.indices.to_numpy()


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of ROWS_AT_ONCE rows or a little more.

    Arrow stops at every row group, and counting so few rows at a time is slow.
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
    """One number for each element."""
    return np.zeros(NUM_ELEMENTS)


def _of_element(by_split: dict[str, np.ndarray], atomic_number: int) -> dict[str, int]:
    """The counts of one element, by split."""
    return {split: int(counts[atomic_number]) for split, counts in by_split.items()}


def _add_counts(total: dict[str, Any], further: dict[str, Any]) -> None:
    """Add counts by split to others."""
    for split, counts in further.items():
        total[split] = total.get(split, 0) + counts


def _squared_norms(forces: pa.ListArray) -> np.ndarray:
    """Squared norms (sum N,) of the forces of some structures."""
    components = forces.flatten().to_numpy().reshape(-1, 3)
    # a product with a matrix of ones is twice as fast as a sum along the short axis
    return (components * components) @ np.ones(3, np.float32)
