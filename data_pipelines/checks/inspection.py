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
from ..store.shards import BrokenDataSetError, read_info, scan_shard
from ..structure import SPLITS, Structure
from .inspection_measures import CUTOFF, Measures, Surroundings, reference_energies
from .outliers import KINDS, MIN_BOND_SHARE, Outlier, Spread, Suspects, far_outliers


MAX_SAMPLED = 5000
ROWS_AT_ONCE = 4096
NUM_EXAMPLES = 3
# edges of the histograms: eV/A, atoms, neighbours, share of the sum of two covalent radii
FORCE_EDGES = np.logspace(-4, 4, 81)
# rounded, so that small sizes have a bin each
SIZE_EDGES = np.unique(np.round(np.geomspace(1, 1e5, 61))) - 0.5
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
        known = values[~np.isnan(values)]
        clipped = np.clip(known, self.edges[0], self.edges[-1])
        counts, _ = np.histogram(clipped, self.edges)
        self.counts[level] = self.counts.get(level, 0) + counts


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
        return sum(sum(by_split.values()) for by_split in self.structures.values())

    @property
    def levels(self) -> list[str]:
        """Levels of theory, the one with the most structures first."""
        return sorted(self.structures, key=lambda level: -sum(self.structures[level].values()))


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
            if len(self.levels) in example_rows:
                self.examples.append(Example(structure, split, energy, force, pressure))
            self.levels.append(structure.level_of_theory)
            self.values["energy"].append(energy)
            self.values["force"].append(force)
            self.values["pressure"].append(pressure)
            self._look_around(structure, split)

    def _look_around(self, structure: Structure, split: str) -> None:
        """Neighbours and distances of one structure."""
        around = Surroundings.of(structure)
        self.neighbours.add(structure.level_of_theory, around.num_neighbours)
        self.bond_shares.add(structure.level_of_theory, np.array([around.bond_share]))

        if around.bond_share < MIN_BOND_SHARE:
            reason = (
                f"{'-'.join(around.pair)} distance {around.distance:.3f} A, "
                f"{around.bond_share:.2f} of the sum of covalent radii (below {MIN_BOND_SHARE})"
            )
            name = structure.structure_id
            self.short.add([Outlier(name, split, -around.bond_share, reason)])

        alone = np.flatnonzero(around.num_neighbours == 0)
        # an atom in vacuum is usually meant; an atom in an empty cell is usually not
        if len(alone) and structure.pbc.any():
            reason = (
                f"{len(alone)} of {len(structure)} atoms without a neighbour within {CUTOFF:g} A "
                f"in a periodic cell, the first is {alone[0]}"
            )
            share = len(alone) / len(structure)
            self.isolated.add([Outlier(structure.structure_id, split, share, reason)])

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Median and robust standard deviation by level of theory and quantity."""
        levels = np.array(self.levels, dtype=object)
        found: dict[str, dict[str, Spread]] = {}
        for level in dict.fromkeys(self.levels):
            found[level] = {}
            for kind, values in self.values.items():
                spread = Spread.of(np.array(values)[levels == level])
                if spread is not None:
                    found[level][kind] = spread
        return found

    def energy_edges(self, spreads: dict[str, dict[str, Spread]]) -> np.ndarray:
        """Bins over the sampled energies, but not beyond ENERGY_REACH of every level of theory."""
        values = np.array(self.values["energy"])
        values = values[~np.isnan(values)]
        known = [by_kind["energy"] for by_kind in spreads.values() if "energy" in by_kind]
        if not known:
            return np.linspace(-1, 1, NUM_ENERGY_BINS + 1)
        lowest = min(spread.median - ENERGY_REACH * spread.sigma for spread in known)
        highest = max(spread.median + ENERGY_REACH * spread.sigma for spread in known)
        low = max(values.min(), lowest)
        high = min(values.max(), highest)
        margin = max(1e-3, 0.01 * (high - low))
        return np.linspace(low - margin, high + margin, NUM_ENERGY_BINS + 1)


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
    example_rows = set(np.linspace(0, num_sampled - 1, NUM_EXAMPLES).astype(int).tolist())
    splits = [
        split for split in SPLITS if any(name.startswith(f"{split}-") for name in info["shards"])
    ]
    for split, table in _sampled_rows(folder, splits, chosen):
        with _named_damage(folder / f"{split}-*.parquet"):
            sample.add(table, split, example_rows)

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


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Name the file where a list is too short, an element unknown, or E0 missing."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenDataSetError(
            f"damaged ({error!r})", file=path, remedy="convert the source again"
        ) from error


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
            begin, end = np.searchsorted(chosen, (first, first + size))
            rows = chosen[begin:end] - first
            if len(rows):
                yield split, reader.table(index).take(rows)
            first += size


def _count_all(inspection: Inspection, shards: list[str], e0: dict[str, np.ndarray]) -> int:
    """The second pass: counts, histograms and outliers of the labels of all structures.

    Returns how many structures have an energy but not all E0.
    """
    without_e0 = 0
    for name in shards:
        split = name.split("-")[0]
        path = inspection.folder / name
        for table in scan_shard(path, list(Measures.COLUMNS), rows=ROWS_AT_ONCE):
            with _named_damage(path):
                measures = Measures.of(table, e0)
            without_e0 += int((measures.has["energy"] & np.isnan(measures.energy)).sum())
            for level in dict.fromkeys(measures.levels):
                _count_level(inspection, measures, level, split)
    return without_e0


def _count_level(inspection: Inspection, measures: Measures, level: str, split: str) -> None:
    """Count the structures of one level of theory among those that were measured."""
    own = measures.levels == level
    by_split = inspection.structures.setdefault(level, {})
    by_split[split] = by_split.get(split, 0) + int(own.sum())
    by_label = inspection.labels.setdefault(level, {})
    for label, present in measures.has.items():
        by_label[label] = by_label.get(label, 0) + int(present[own].sum())

    histograms = inspection.histograms
    histograms["energy"].add(level, measures.energy[own])
    histograms["size"].add(level, measures.num_atoms[own].astype(float))
    forces_of_own = np.repeat(own, measures.num_forces)
    histograms["force"].add(level, measures.force_norms[forces_of_own])

    ids = [measures.structure_ids[row] for row in np.flatnonzero(own)]
    for kind, spread in inspection.spreads.get(level, {}).items():
        values = getattr(measures, kind)[own]
        outliers = far_outliers(kind, spread, values, ids, level, split)
        inspection.outliers[kind].add(outliers)
