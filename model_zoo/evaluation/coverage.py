"""Which structures a model can predict: those at its levels of theory, with trained elements.

A calculator refuses all others. An evaluation leaves them out, because a mean over guesses would
say nothing about the model. It reports how many were left out and why, so that a mean over fewer
structures does not look like a mean over all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ...data_pipelines.structure import Structure


MAX_NAMES_SHOWN = 10


class Coverage:
    """Filters structures that a model can predict, and counts the others."""

    def __init__(self, elements: Mapping[str, Iterable[str]]) -> None:
        """`elements` maps levels of theory to trained symbols, as in a model's record."""
        self._learned: dict[str, set[int]] = {}
        for level, symbols in elements.items():
            self._learned[level] = {atomic_numbers[symbol] for symbol in symbols}

        # structures that were left out
        self.unknown_levels: Counter[str] = Counter()
        self.unseen_elements: Counter[str] = Counter()
        self._unseen: dict[str, set[int]] = {}

    def answerable(self, structures: Iterable[Structure]) -> Iterator[Structure]:
        """Yield structures at known levels whose elements were all trained at their level."""
        for structure in structures:
            level = structure.level_of_theory
            learned = self._learned.get(level)
            if learned is None:
                self.unknown_levels[level] += 1
                continue

            unseen = set(np.unique(structure.atomic_numbers).tolist()) - learned
            if unseen:
                self.unseen_elements[level] += 1
                self._unseen.setdefault(level, set()).update(unseen)
                continue
            yield structure

    @property
    def left_out(self) -> list[str]:
        """One line per level of theory on the structures left out so far, with the reason."""
        known = _shown(self._learned)
        sentences = []
        for level, count in sorted(self.unknown_levels.items()):
            sentences.append(f"{count} at {level!r}: the model knows {known}")
        for level, count in sorted(self.unseen_elements.items()):
            numbers = sorted(self._unseen[level])
            symbols = _shown(chemical_symbols[number] for number in numbers)
            sentences.append(f"{count} at {level!r} with {symbols}, not learned at this level")
        return sentences


def _shown(names: Iterable[str]) -> str:
    """The first names of a list, and the number of the others."""
    listed = list(names)
    text = ", ".join(listed[:MAX_NAMES_SHOWN])
    hidden = len(listed) - MAX_NAMES_SHOWN
    return f"{text} and {hidden} more" if hidden > 0 else text
