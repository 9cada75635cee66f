"""What is in a converted data set: histograms, examples, suspected outliers.

Two passes with bounded memory. The first looks at a sample of at most MAX_SAMPLED structures,
evenly spaced over the data set: medians, neighbours and distances come from it. The second reads
the labels of all structures, and compares them with the medians of the first.

The result is an `Inspection`; `inspection_page.py` makes a page of it.
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
# edges of the histograms: eV/A, atoms, neighbours, share of the sum of two covalent radii
FORCE_EDGES = np.logspace(-4, 4, 81)
# rounding makes equal edges of the smallest sizes: without repeats each has one bin
_ROUNDED_SIZES = np.round(np.geomspace(1, 1e5, 61))
SIZE_EDGES = np.unique(_ROUNDED_SIZES) - 0.5
NEIGHBOUR_EDGES = np.arange(258) - 0.5
SHARE_EDGES = np.linspace(0, 2, 81)
NUM_ENERGY_BINS = 60
# robust standard deviations; a few absurd energies must not stretch the histogram
ENERGY_REACH = 12


@dataclass(frozen=True)
class Histogram:
    """Counts (B,) by level of theory between edges (B + 1,).

    What lies beyond the edges is counted in the first and the last bin.
    """

    edges: np.ndarray
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, level: str, values: np.ndarray) -> None:
        """Count values of a level of theory; NaN is left out."""
        is_known = ~np.isnan(values)
        lowest = self.edges[0]
        highest = self.edges[-1]
        # np.histogram would leave out what lies beyond the edges
        clipped = np.clip(values[is_known], lowest, highest)
        counts, _ = np.histogram(clipped, self.edges)
        earlier = self.counts.get(level, 0)
        self.counts[level] = earlier + counts


@dataclass(frozen=True)
class Example:
    """A structure of the data set with its split and what was measured on it."""

    structure: Structure
    split: str
    energy: float
    """eV/atom after E0"""
    force: float
    """eV/A, the largest"""
    pressure: float
    """GPa"""


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    folder: Path
    num_sampled: int
    """Structures of the sample."""
    structures: dict[str, dict[str, int]]
    """Level of theory -> split -> structures, of all structures."""
    labels: dict[str, dict[str, int]]
    """Level of theory -> label -> structures that have it, of all structures."""
    spreads: dict[str, dict[str, Spread]]
    """Level of theory -> quantity of KINDS -> median and spread, of the sample."""
    histograms: dict[str, Histogram]
    """Energy, force and size of all structures; neighbours and distance of the sample."""
    examples: list[Example]
    outliers: dict[str, Suspects]
    """By kind, as in KINDS."""
    without_e0: int
    """Structures with an energy, but with an element that their level's training split lacks."""

    @property
    def num_structures(self) -> int:
        """Structures in all splits."""
        return sum(map(self.num_structures_of, self.structures))

    @property
    def levels(self) -> list[str]:
        """Levels of theory, the one with the most structures first."""
        # negated instead of `reverse`, so that equally large levels keep their order
        return sorted(self.structures, key=lambda level: -self.num_structures_of(level))

    def num_structures_of(self, level: str) -> int:
        """Structures of one level of theory in all splits."""
        by_split = self.structures[level]
        return sum(by_split.values())


@dataclass
class _Sample:
    """What the first pass gathers."""

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
        """Measure the structures of a table; those at `example_rows` of the sample are kept."""
        measures = Measures.of(table, self.e0)
        for row, structure in enumerate(Block(table)):
            energy = float(measures.energy[row])
            force = float(measures.force[row])
            pressure = float(measures.pressure[row])
            # tables come one after the other, so the place in the sample is the count so far
            place = len(self.levels)
            if place in example_rows:
                self.examples.append(Example(structure, split, energy, force, pressure))
            self.levels.append(structure.level_of_theory)
            self.values["energy"].append(energy)
            self.values["force"].append(force)
            self.values["pressure"].append(pressure)
            self._look_around(structure, split)

    def _look_around(self, structure: Structure, split: str) -> None:
        """Neighbours and distances of one structure."""
        around = Surroundings.of(structure)
        level = structure.level_of_theory
        name = structure.structure_id
        self.neighbours.add(level, around.num_neighbours)
        self.bond_shares.add(level, np.array([around.bond_share]))

        # NaN, of a structure without neighbours, is not below
        if around.bond_share < MIN_BOND_SHARE:
            pair = "-".join(around.pair)
            reason = (
                f"{pair} distance {around.distance:.3f} A, "
                f"{around.bond_share:.2f} of the sum of covalent radii (below {MIN_BOND_SHARE})"
            )
            self.short.add([Outlier(name, split, -around.bond_share, reason)])

        alone = np.flatnonzero(around.num_neighbours == 0)
        num_alone = len(alone)
        # an atom in vacuum is usually meant; an atom in an empty cell is usually not
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
        """Bins over the sampled energies, but not beyond ENERGY_REACH of every level of theory."""
        values = np.array(self.values["energy"])
        values = values[~np.isnan(values)]

        # how far bins may reach, eV/atom: a level without energies has no say
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
        # equal energies would give bins of no width
        margin = max(1e-3, 0.01 * (high - low))
        return np.linspace(low - margin, high + margin, num_edges)


def inspect(folder: Path | str) -> Inspection:
    """Look at all splits of a converted data set.

    Raises BrokenDataSetError for a folder that is not one, or that has no structures.
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
    # first, middle and last of the sample; the same one where the sample is that small
    places = np.linspace(0, num_sampled - 1, NUM_EXAMPLES)
    example_rows = set(places.astype(int).tolist())

    # a split without shards cannot be opened
    present = {_split_of_shard(name) for name in info["shards"]}
    splits = [split for split in SPLITS if split in present]
    for split, table in _sampled_rows(folder, splits, chosen):
        with _named_damage(folder / f"{split}-*.parquet"):
            sample.add(table, split, example_rows)

    # the second pass fills in what is empty or zero here
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
    """Shards are called train-00000.parquet."""
    return name.split("-")[0]


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Name the file where a list is too short, an element unknown, or E0 missing."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenDataSetError(f"damaged ({error!r})", file=path, remedy=CONVERT_AGAIN) from error


def _sampled_rows(
    folder: Path, splits: list[str], chosen: np.ndarray
) -> Iterator[tuple[str, pa.Table]]:
    """Split and chosen rows, block by block; a block without chosen rows is not read.

    chosen: ascending, counted over all splits.
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
    """The second pass: counts, histograms and outliers of the labels of all structures.

    Returns how many structures have an energy but not all E0.
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
    """Count the structures of one level of theory among those that were measured."""
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
    # integers have no NaN to look for
    histograms["size"].add(level, sizes.astype(float))
    # norms are counted over atoms, and their structures over rows
    forces_of_own = np.repeat(own, measures.num_forces)
    histograms["force"].add(level, measures.force_norms[forces_of_own])

    rows_of_own = np.flatnonzero(own)
    ids = [measures.structure_ids[row] for row in rows_of_own]
    for kind, spread in inspection.spreads.get(level, {}).items():
        values = getattr(measures, kind)[own]
        outliers = far_outliers(kind, spread, values, ids, level, split)
        inspection.outliers[kind].add(outliers)
