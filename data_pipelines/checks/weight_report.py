"""Report how importance weights change the composition of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import figure_png
from ...core.files import file_errors, write_atomically
from ..census.census import NUM_ELEMENTS
from ..census.weights import WeightConfig, effective_share, has_element
from ..store.blocks import BlockReader
from ..store.folder_files import WEIGHTS_PICTURE
from ..stream.source import fit_weights


@dataclass(frozen=True)
class WeightReport:
    """The weights of a split's structures, and how often each element occurs in an epoch."""

    num_structures: int
    effective_share: float
    """Effective sample size as a fraction of the number of structures."""
    smallest: float
    """Smallest weight."""
    largest: float
    """Largest weight."""
    before: np.ndarray
    """(119,) number of structures that contain the element"""
    after: np.ndarray
    """(119,) sum of their weights: the expected number of copies in an epoch"""

    def rows(self) -> list[tuple[str, int, float, float]]:
        """(symbol, structures, expected copies, ratio), sorted by ratio in descending order."""
        present = np.flatnonzero(self.before)
        ratio = self.after[present] / self.before[present]
        order = np.lexsort((self.before[present], -ratio))
        rows = []
        for number in present[order]:
            before = self.before[number]
            after = self.after[number]
            rows.append(
                (chemical_symbols[number], int(before), float(after), float(after / before))
            )
        return rows

    def save_picture(self, path: Path, title: str) -> None:
        """Draw the ratio of copies to structures as a periodic table.

        Raises FileError if the file cannot be written.
        """
        ratios = {symbol: ratio for symbol, _, _, ratio in self.rows()}
        unit = "copies in an epoch per structure with the element"
        figure = periodic_table_heat_map(ratios, title, unit)
        # replaces a symbolic link at this place instead of writing through it
        with file_errors(path):
            write_atomically(path, figure_png(figure, kind=WEIGHTS_PICTURE))


def weight_report(folder: Path | str, config: WeightConfig, split: str = "train") -> WeightReport:
    """Compute the weights of all structures of a split, and sum them by element.

    Raises BrokenDataSetError if the folder is not a converted data set or lacks the split.
    """
    blocks = BlockReader(folder, split)
    weights = fit_weights(folder, split, config, blocks)
    before = np.zeros(NUM_ELEMENTS)
    after = np.zeros(NUM_ELEMENTS)
    parts = []
    for numbers, starts, levels in blocks.element_lists():
        own = weights(numbers, starts, levels)
        present = has_element(numbers, starts)
        before += present.sum(0)
        after += own @ present
        parts.append(own)
    all_weights = np.concatenate(parts)
    return WeightReport(
        num_structures=len(all_weights),
        effective_share=effective_share(all_weights),
        smallest=float(all_weights.min()),
        largest=float(all_weights.max()),
        before=before,
        after=after,
    )
