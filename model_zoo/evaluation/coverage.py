"""Which structures a model can answer for: those of its levels of theory and learned elements.

A calculator refuses all others. An evaluation leaves them out, and says how many and why: a mean
over guesses is no error of the model, and a mean over fewer structures than were asked for must not
look like one over all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ...data_pipelines.structure import Structure


MAX_NAMES_SHOWN = 10


class Coverage:
    """Lets the structures pass that a model can answer for, and counts the others."""

    def __init__(self, elements: Mapping[str, Iterable[str]]) -> None:
        """`elements` are those of a model's record: level of theory -> symbols seen in training."""
        self._learned: dict[str, set[int]] = {}
        for level, symbols in elements.items():
            self._learned[level] = {atomic_numbers[symbol] for symbol in symbols}

        # structures that were left out
        self.unknown_levels: Counter[str] = Counter()
        self.unseen_elements: Counter[str] = Counter()
        self._unseen: dict[str, set[int]] = {}

    def answerable(self, structures: Iterable[Structure]) -> Iterator[Structure]:
        """The structures of known levels whose elements were all learned at their level."""
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
        """What was left out so far: a sentence for each level of theory, with its reason."""
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
    """The first names of a list, and how many more there are."""
    listed = list(names)
    text = ", ".join(listed[:MAX_NAMES_SHOWN])
    hidden = len(listed) - MAX_NAMES_SHOWN
    return f"{text} and {hidden} more" if hidden > 0 else text
