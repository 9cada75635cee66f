"""Inspect a converted data set: histograms, examples and suspected outliers.

There are two passes with bounded memory. The first pass takes medians, neighbours and distances
from a sample of at most MAX_SAMPLED structures, evenly spaced over the data set. The second pass
reads the labels of all structures and compares them with these medians.

The result is an `Inspection`; `inspection_page.py` turns it into a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..census.census import read_census
from ..store.blocks import Block, BlockReader
from ..store.shards import CONVERT_AGAIN, BrokenDataSetError, read_info, scan_shard
from ..structure import SPLITS, Structure
from .inspection_measures import CUTOFF, Measures, Surroundings, reference_energies
from .outliers import KINDS, MIN_BOND_SHARE, Outlier, Spread, Suspects, far_outliers


MAX_SAMPLED = 5000
ROWS_AT_ONCE = 4096
NUM_EXAMPLES = 3
# bin edges of the histograms: eV/A, atoms, neighbours, fraction of the sum of two covalent radii
FORCE_EDGES = np.logspace(-4, 4, 81)
# rounding makes edges of small sizes equal; after removing repeats, each small size has one bin
_ROUNDED_SIZES = np.round(np.geomspace(1, 1e5, 61))
SIZE_EDGES = np.unique(_ROUNDED_SIZES) - 0.5
NEIGHBOUR_EDGES = np.arange(258) - 0.5
SHARE_EDGES = np.linspace(0, 2, 81)
NUM_ENERGY_BINS = 60
# range of the energy histogram in robust standard deviations, so that outliers do not stretch it
ENERGY_REACH = 12


@dataclass(frozen=True)
class Histogram:
    """A histogram with counts (B,) for each level of theory and edges (B + 1,).

    Values beyond the edges are counted in the first or last bin.
    """

    edges: np.ndarray
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, level: str, values: np.ndarray) -> None:
        """Add values of a level of theory; NaN is ignored."""
        is_known = ~np.isnan(values)
        lowest = self.edges[0]
        highest = self.edges[-1]
        # np.histogram would ignore values beyond the edges
        clipped = np.clip(values[is_known], lowest, highest)
        counts, _ = np.histogram(clipped, self.edges)
        earlier = self.counts.get(level, 0)
        self.counts[level] = earlier + counts


@dataclass(frozen=True)
class Example:
    """A structure of the data set with its split and measured quantities."""

    structure: Structure
    split: str
    energy: float
    """eV/atom after subtracting E0; NaN if unknown"""
    force: float
    """largest force norm, eV/A; NaN if unknown"""
    pressure: float
    """GPa; NaN if unknown"""


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`."""

    folder: Path
    num_sampled: int
    """Number of structures in the sample."""
    structures: dict[str, dict[str, int]]
    """Level of theory -> split -> number of structures, over the whole data set."""
    labels: dict[str, dict[str, int]]
    """Level of theory -> label -> number of structures with it, over the whole data set."""
    spreads: dict[str, dict[str, Spread]]
    """Level of theory -> quantity of KINDS -> median and spread, over the sample."""
    histograms: dict[str, Histogram]
    """Energy, force and size over the whole data set; neighbours and distance over the sample."""
    examples: list[Example]
    outliers: dict[str, Suspects]
    """Kind of KINDS -> suspected outliers."""
    without_e0: int
    """Number of structures with an energy, but with an element that has no E0 at their level."""

    @property
    def num_structures(self) -> int:
        """Number of structures in all splits."""
        return sum(map(self.num_structures_of, self.structures))

    @property
    def levels(self) -> list[str]:
        """Levels of theory, sorted by number of structures in descending order."""
        return sorted(self.structures, key=lambda level: -self.num_structures_of(level))

    def num_structures_of(self, level: str) -> int:
        """Number of structures of one level of theory in all splits."""
        by_split = self.structures[level]
        return sum(by_split.values())


@dataclass
class _Sample:
    """The results of the first pass."""

    e0: dict[str, np.ndarray]
    levels: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(
        default_factory=lambda: {"energy": [], "force": [], "pressure": []}
    )
    neighbours: Histogram = field(default_factory=lambda: Histogram(NEIGHBOUR_EDGES))
    bond_shares: Histogram = field(default_factory=lambda: Histogram(SHARE_EDGES))
    short: Suspects = field(default_factory=Suspects)
    isolated: Suspects = field(default_factory=Suspects)
    examples: list[Example] = field(default_factory=list)

    def add(self, table: pa.Table, split: str, example_rows: set[int]) -> None:
        """Measure the structures of a table; keep those at the sample indices `example_rows`."""
        measures = Measures.of(table, self.e0)
        for row, structure in enumerate(Block(table)):
            energy = float(measures.energy[row])
            force = float(measures.force[row])
            pressure = float(measures.pressure[row])
            # tables arrive in order, so the index in the sample is the count so far
            place = len(self.levels)
            if place in example_rows:
                self.examples.append(Example(structure, split, energy, force, pressure))
            self.levels.append(structure.level_of_theory)
            self.values["energy"].append(energy)
            self.values["force"].append(force)
            self.values["pressure"].append(pressure)
            self._look_around(structure, split)

    def _look_around(self, structure: Structure, split: str) -> None:
        """Measure the neighbours and distances of one structure."""
        around = Surroundings.of(structure)
        level = structure.level_of_theory
        name = structure.structure_id
        self.neighbours.add(level, around.num_neighbours)
        self.bond_shares.add(level, np.array([around.bond_share]))

        # False for NaN, which stands for a structure without neighbours
        if around.bond_share < MIN_BOND_SHARE:
            pair = "-".join(around.pair)
            reason = (
                f"{pair} distance {around.distance:.3f} A, "
                f"{around.bond_share:.2f} of the sum of covalent radii (below {MIN_BOND_SHARE})"
            )
            self.short.add([Outlier(name, split, -around.bond_share, reason)])

        alone = np.flatnonzero(around.num_neighbours == 0)
        num_alone = len(alone)
        # an atom in vacuum is usually intended, but one without neighbours in a cell is usually not
        if num_alone and structure.pbc.any():
            num_atoms = len(structure)
            reason = (
                f"{num_alone} of {num_atoms} atoms without a neighbour within {CUTOFF:g} A "
                f"in a periodic cell, the first is {alone[0]}"
            )
            self.isolated.add([Outlier(name, split, num_alone / num_atoms, reason)])

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Median and robust standard deviation by level of theory and quantity."""
        levels = np.array(self.levels, dtype=object)
        found: dict[str, dict[str, Spread]] = {}
        for level in dict.fromkeys(self.levels):
            found[level] = {}
            is_own = levels == level
            for kind, values in self.values.items():
                own_values = np.array(values)[is_own]
                spread = Spread.of(own_values)
                if spread is not None:
                    found[level][kind] = spread
        return found

    def energy_edges(self, spreads: dict[str, dict[str, Spread]]) -> np.ndarray:
        """Bin edges over the sampled energies, eV/atom, within ENERGY_REACH of some level."""
        values = np.array(self.values["energy"])
        values = values[~np.isnan(values)]

        # limits of the bins, eV/atom; levels without energies do not count
        lowest = []
        highest = []
        for by_kind in spreads.values():
            if "energy" in by_kind:
                spread = by_kind["energy"]
                lowest.append(spread.median - ENERGY_REACH * spread.sigma)
                highest.append(spread.median + ENERGY_REACH * spread.sigma)
        num_edges = NUM_ENERGY_BINS + 1
        if not lowest:
            return np.linspace(-1, 1, num_edges)

        low = max(values.min(), min(lowest))
        high = min(values.max(), max(highest))
        # if all energies are equal, bins would have no width without a margin
        margin = max(1e-3, 0.01 * (high - low))
        return np.linspace(low - margin, high + margin, num_edges)


def inspect(folder: Path | str) -> Inspection:
    """Inspect all splits of a converted data set.

    Raises BrokenDataSetError if the folder is not a data set, is damaged, or has no structures.
    """
    folder = Path(folder)
    info = read_info(folder)
    census = read_census(folder)
    with _named_damage(folder / "census.json"):
        e0 = reference_energies(census)
    total = sum(info["num_structures"].values())
    if not total:
        raise BrokenDataSetError(
            "no structures", file=folder, remedy="convert a source that has some"
        )

    sample = _Sample(e0)
    num_sampled = min(total, MAX_SAMPLED)
    chosen = np.arange(num_sampled) * total // num_sampled
    # the first, middle and last structure of the sample, which coincide in a very small sample
    places = np.linspace(0, num_sampled - 1, NUM_EXAMPLES)
    example_rows = set(places.astype(int).tolist())

    # a split without shards cannot be opened
    present = {_split_of_shard(name) for name in info["shards"]}
    splits = [split for split in SPLITS if split in present]
    for split, table in _sampled_rows(folder, splits, chosen):
        with _named_damage(folder / f"{split}-*.parquet"):
            sample.add(table, split, example_rows)

    # the second pass fills in the parts that are empty or zero here
    spreads = sample.spreads()
    outliers = {kind: Suspects() for kind in KINDS}
    outliers["distance"] = sample.short
    outliers["isolated"] = sample.isolated
    inspection = Inspection(
        folder=folder,
        num_sampled=len(sample.levels),
        structures={},
        labels={},
        spreads=spreads,
        histograms={
            "energy": Histogram(sample.energy_edges(spreads)),
            "force": Histogram(FORCE_EDGES),
            "neighbours": sample.neighbours,
            "distance": sample.bond_shares,
            "size": Histogram(SIZE_EDGES),
        },
        examples=sample.examples,
        outliers=outliers,
        without_e0=0,
    )
    without_e0 = _count_all(inspection, sorted(info["shards"]), e0)
    return replace(inspection, without_e0=without_e0)


def _split_of_shard(name: str) -> str:
    """The split of a shard, from its name, such as train-00000.parquet."""
    return name.split("-")[0]


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Turn errors that damaged content causes into a BrokenDataSetError about `path`."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenDataSetError(f"damaged ({error!r})", file=path, remedy=CONVERT_AGAIN) from error


def _sampled_rows(
    folder: Path, splits: list[str], chosen: np.ndarray
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the split and the chosen rows of each block; blocks without chosen rows are not read.

    chosen: ascending indices of structures, counted over all splits.
    """
    first = 0
    for split in splits:
        reader = BlockReader(folder, split)
        for index, size in enumerate(reader.sizes):
            stop = first + size
            begin, end = np.searchsorted(chosen, (first, stop))
            rows = chosen[begin:end] - first
            if len(rows):
                table = reader.table(index)
                yield split, table.take(rows)
            first = stop


def _count_all(
    inspection: Inspection,
    shards: list[str],
    e0: dict[str, np.ndarray],
) -> int:
    """The second pass: add counts, histograms and outliers of all structures to the inspection.

    Returns the number of structures with an energy, but without an E0 for one of their elements.
    """
    without_e0 = 0
    for name in shards:
        split = _split_of_shard(name)
        path = inspection.folder / name
        for table in scan_shard(path, list(Measures.COLUMNS), rows=ROWS_AT_ONCE):
            with _named_damage(path):
                measures = Measures.of(table, e0)
            has_energy = measures.has["energy"]
            lacks_e0 = np.isnan(measures.energy)
            without_e0 += int((has_energy & lacks_e0).sum())
            for level in dict.fromkeys(measures.levels):
                _count_level(inspection, measures, level, split)
    return without_e0


def _count_level(inspection: Inspection, measures: Measures, level: str, split: str) -> None:
    """Add the measured structures of one level of theory to the inspection."""
    own = measures.levels == level
    by_split = inspection.structures.setdefault(level, {})
    earlier = by_split.get(split, 0)
    by_split[split] = earlier + int(own.sum())
    by_label = inspection.labels.setdefault(level, {})
    for label, present in measures.has.items():
        earlier = by_label.get(label, 0)
        by_label[label] = earlier + int(present[own].sum())

    histograms = inspection.histograms
    histograms["energy"].add(level, measures.energy[own])
    sizes = measures.num_atoms[own]
    # converted to float, because `add` looks for NaN
    histograms["size"].add(level, sizes.astype(float))
    # force norms are per atom, so the mask of structures must be repeated
    forces_of_own = np.repeat(own, measures.num_forces)
    histograms["force"].add(level, measures.force_norms[forces_of_own])

    rows_of_own = np.flatnonzero(own)
    ids = [measures.structure_ids[row] for row in rows_of_own]
    for kind, spread in inspection.spreads.get(level, {}).items():
        values = getattr(measures, kind)[own]
        outliers = far_outliers(kind, spread, values, ids, level, split)
        inspection.outliers[kind].add(outliers)
