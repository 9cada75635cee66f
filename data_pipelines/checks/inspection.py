"""What is in a converted data set, to be looked at before a run: histograms, examples, suspected outliers.

Two passes with bounded memory.  The first looks at a sample of at most MAX_SAMPLED structures, evenly spaced over the
data set: medians, neighbours and distances come from it.  The second reads the labels of all structures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..census.census import read_census
from ..store.blocks import Block, BlockReader
from ..store.shards import BrokenDataSetError, read_info, scan_shard
from ..structure import SPLITS, Structure
from .inspection_measures import CUTOFF, Labels, Surroundings, reference_energies
from .outliers import KINDS, MIN_BOND_SHARE, Outlier, Spread, Suspects, far_outliers


MAX_SAMPLED = 5000
ROWS_AT_ONCE = 4096
NUM_EXAMPLES = 3
FORCE_EDGES = np.logspace(-4, 4, 81)  # eV/A
SIZE_EDGES = (
    np.unique(np.round(np.geomspace(1, 1e5, 61))) - 0.5
)  # atoms; each size its own bin where they are small
NEIGHBOUR_EDGES = np.arange(258) - 0.5
SHARE_EDGES = np.linspace(0, 2, 81)


@dataclass(frozen=True)
class Histogram:
    """Counts (B,) per level of theory between edges (B + 1,); what lies beyond them is in the first and last bin."""

    edges: np.ndarray
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, level: str, values: np.ndarray) -> None:
        """Count values of a level; NaN is left out."""
        clipped = np.clip(values[~np.isnan(values)], self.edges[0], self.edges[-1])
        counts, _ = np.histogram(clipped, self.edges)
        self.counts[level] = self.counts.get(level, 0) + counts


@dataclass(frozen=True)
class Example:
    """A record of the data set with its split and what was measured on it."""

    structure: Structure
    split: str
    energy: float  # eV per atom after E0
    force: float  # eV/A, largest
    pressure: float  # GPa


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; histograms and outliers by the names of what they are about.

    `structures` and `labels` count all structures per level of theory, the former by split, the latter by label.
    `num_sampled` structures, evenly spaced, were looked at for medians, neighbours and distances.
    `without_e0` have an energy but an element that their level's training split lacks.
    """

    folder: Path
    num_sampled: int
    structures: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    spreads: dict[str, dict[str, Spread]]  # level -> quantity of KINDS
    histograms: dict[str, Histogram]
    examples: list[Example]
    outliers: dict[str, Suspects]
    without_e0: int

    @property
    def num_structures(self) -> int:
        """Structures in all splits."""
        return sum(sum(by_split.values()) for by_split in self.structures.values())


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
        labels = Labels.of(table, self.e0)
        for k, structure in enumerate(Block(table)):
            measured = (labels.energy[k], labels.force[k], labels.pressure[k])
            if len(self.levels) in example_rows:
                self.examples.append(Example(structure, split, *map(float, measured)))
            self.levels.append(structure.level_of_theory)
            for values, value in zip(self.values.values(), measured, strict=True):
                values.append(float(value))
            self._look_around(structure, split)

    def _look_around(self, structure: Structure, split: str) -> None:
        around, name = Surroundings.of(structure), structure.structure_id
        self.neighbours.add(structure.level_of_theory, around.num_neighbours)
        self.bond_shares.add(structure.level_of_theory, np.array([around.bond_share]))
        if around.bond_share < MIN_BOND_SHARE:
            reason = (
                f"{'-'.join(around.pair)} distance {around.distance:.3f} A, {around.bond_share:.2f} of the sum of "
                f"covalent radii (below {MIN_BOND_SHARE})"
            )
            self.short.add([Outlier(name, split, -around.bond_share, reason)])
        alone = np.flatnonzero(around.num_neighbours == 0)
        if len(alone) and structure.pbc.any():
            reason = f"{len(alone)} of {len(structure)} atoms without a neighbour within {CUTOFF:g} A in a periodic cell"
            self.isolated.add(
                [
                    Outlier(
                        name,
                        split,
                        len(alone) / len(structure),
                        f"{reason}, the first is {alone[0]}",
                    )
                ]
            )

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Median and robust standard deviation by level and quantity."""
        levels, found = np.array(self.levels, dtype=object), {}
        for level in dict.fromkeys(self.levels):
            own = {
                kind: Spread.of(np.array(values)[levels == level])
                for kind, values in self.values.items()
            }
            found[level] = {kind: spread for kind, spread in own.items() if spread}
        return found

    def energy_edges(self, spreads: dict[str, dict[str, Spread]]) -> np.ndarray:
        """60 bins over the sampled energies, but not beyond 12 robust standard deviations of every level."""
        values = np.array(self.values["energy"])
        values, known = (
            values[~np.isnan(values)],
            [s["energy"] for s in spreads.values() if "energy" in s],
        )
        if not known:
            return np.linspace(-1, 1, 61)
        low = max(values.min(), min(s.median - 12 * s.sigma for s in known))
        high = min(values.max(), max(s.median + 12 * s.sigma for s in known))
        margin = max(1e-3, 0.01 * (high - low))
        return np.linspace(low - margin, high + margin, 61)


def inspect(folder: Path | str) -> Inspection:
    """Look at all splits of a converted data set.

    Raises BrokenDataSetError for a folder that is none, or holds no structures.
    """
    folder = Path(folder)
    info, census = read_info(folder), read_census(folder)
    with _named_damage(folder / "census.json"):
        e0 = reference_energies(census)
    total = sum(info["num_structures"].values())
    if not total:
        raise BrokenDataSetError(f"{folder}: holds no structures: convert a source that has some")
    sample, num_sampled = _Sample(e0), min(total, MAX_SAMPLED)
    example_rows = set(np.linspace(0, num_sampled - 1, NUM_EXAMPLES).astype(int).tolist())
    splits = [
        split for split in SPLITS if any(name.startswith(f"{split}-") for name in info["shards"])
    ]
    for split, table in _sampled_rows(
        folder, splits, np.arange(num_sampled) * total // num_sampled
    ):
        with _named_damage(folder / f"{split}-*.parquet"):
            sample.add(table, split, example_rows)
    spreads = sample.spreads()
    result = Inspection(
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
        outliers={kind: Suspects() for kind in KINDS}
        | {"distance": sample.short, "isolated": sample.isolated},
        without_e0=0,
    )
    return _count_all(result, sorted(info["shards"]), e0)


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Lists of wrong lengths, unknown elements, a census without E0: what reading alone does not notice."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenDataSetError(
            f"{path}: damaged ({error!r}): convert the source again"
        ) from error


def _sampled_rows(
    folder: Path, splits: list[str], chosen: np.ndarray
) -> Iterator[tuple[str, pa.Table]]:
    """Split and chosen rows (ascending, counted over all splits), block by block; blocks without any are not read."""
    start = 0  # of the block among all structures
    for split in splits:
        reader = BlockReader(folder, split)
        for index, size in enumerate(reader.sizes):
            rows = chosen[slice(*np.searchsorted(chosen, (start, start + size)))] - start
            if len(rows):
                yield split, reader.table(index).take(rows)
            start += size


def _count_all(result: Inspection, shards: list[str], e0: dict[str, np.ndarray]) -> Inspection:
    """The second pass: fills histograms, counts and outliers of labels from all structures."""
    without_e0 = 0
    for name in shards:
        split = name.split("-")[0]
        for table in scan_shard(result.folder / name, list(Labels.COLUMNS), rows=ROWS_AT_ONCE):
            with _named_damage(result.folder / name):
                labels = Labels.of(table, e0)
            without_e0 += int((labels.has["energy"] & np.isnan(labels.energy)).sum())
            for level in dict.fromkeys(labels.levels):
                _count_level(result, labels, level, split)
    return Inspection(**(vars(result) | {"without_e0": without_e0}))


def _count_level(result: Inspection, labels: Labels, level: str, split: str) -> None:
    own = labels.levels == level
    by_split, by_label = (
        result.structures.setdefault(level, {}),
        result.labels.setdefault(level, {}),
    )
    by_split[split] = by_split.get(split, 0) + int(own.sum())
    for label, present in labels.has.items():
        by_label[label] = by_label.get(label, 0) + int(present[own].sum())
    result.histograms["energy"].add(level, labels.energy[own])
    result.histograms["size"].add(level, labels.num_atoms[own].astype(float))
    result.histograms["force"].add(level, labels.force_norms[np.repeat(own, labels.num_forces)])
    ids = [labels.structure_ids[k] for k in np.flatnonzero(own)]
    for kind, spread in result.spreads.get(level, {}).items():
        values = getattr(labels, kind)[own]
        result.outliers[kind].add(far_outliers(kind, spread, values, ids, level, split))
