"""What importance weights will do to an epoch, before a run is spent on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from ...core.figures.periodic_table import periodic_table_heat_map
from ..census.census import NUM_ELEMENTS
from ..census.weights import WeightConfig, effective_share, has_element
from ..store.blocks import BlockReader
from ..stream.stream import fit_weights


@dataclass(frozen=True)
class WeightReport:
    """Effective share of the data, largest and smallest weight, and per element (119,) what an epoch holds of it.

    `before` counts the structures with the element, `after` their weights: the copies to expect in an epoch.
    """

    num_structures: int
    effective_share: float
    smallest: float
    largest: float
    before: np.ndarray
    after: np.ndarray

    def rows(self) -> list[tuple[str, int, float, float]]:
        """(symbol, structures, copies expected, ratio), the most favoured first."""
        present = np.flatnonzero(self.before)
        ratio = self.after[present] / self.before[present]
        order = np.lexsort((self.before[present], -ratio))
        return [
            (
                chemical_symbols[z],
                int(self.before[z]),
                float(self.after[z]),
                float(self.after[z] / self.before[z]),
            )
            for z in present[order]
        ]

    def save_picture(self, path: Path, title: str) -> None:
        """Periodic table of copies over structures."""
        ratios = {symbol: ratio for symbol, _, _, ratio in self.rows()}
        periodic_table_heat_map(
            ratios, title, "copies in an epoch per structure with the element"
        ).savefig(path)


def weight_report(folder: Path | str, config: WeightConfig, split: str = "train") -> WeightReport:
    """Weights of every structure of a split, summed by element; reads one column."""
    blocks = BlockReader(folder, split)
    weights = fit_weights(folder, split, config, blocks)
    before, after, all_weights = np.zeros(NUM_ELEMENTS), np.zeros(NUM_ELEMENTS), []
    for numbers, starts in blocks.element_lists():
        own, present = weights(numbers, starts), has_element(numbers, starts)
        before += present.sum(0)
        after += own @ present
        all_weights.append(own)
    w = np.concatenate(all_weights)
    return WeightReport(len(w), effective_share(w), float(w.min()), float(w.max()), before, after)
