"""Check that the energies of new data fit the heads of their levels of theory.

Levels of theory are identified only by name. If two names are swapped, every structure gets the
wrong head, and no other check would notice. Levels differ most in their zero of energy. Energies
per atom are therefore compared with the prediction of the named head, and of all other heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from ase.data import atomic_numbers

from ...data_pipelines.structure import Structure
from ..potential.potential import Potential
from .evaluation import predict


FEWEST = 3  # structures with an energy that a level needs

# Another head fits better if the error of the named head is larger by this factor ...
TIMES = 3.0
# ... and by this difference, in eV/atom.
MORE = 0.05
# The same limits for a swap of names beyond doubt.
CLEARLY_TIMES = 5.0
CLEARLY_MORE = 0.2
# A larger error, in eV/atom, is reported even if no other head fits better. Even an untrained model
# has smaller errors, because its reference energies are fitted.
LARGE = 1.0


@dataclass(frozen=True)
class Misfit:
    """A level of theory whose energies are far from the predictions of its head."""

    level: str
    error: float
    """Median |label - prediction| in eV/atom."""
    better: str | None = None
    """A level whose head fits these structures better."""
    error_of_better: float = 0.0

    def __str__(self) -> str:
        own = f"energies at {self.level} are {self.error:.2g} eV/atom from what its head predicts"
        if self.better is None:
            return own
        return f"{own}, and {self.error_of_better:.2g} from the head of {self.better}"

    @property
    def is_clear(self) -> bool:
        """Whether the other head fits so much better that chance is ruled out."""
        return self.better is not None and _fits_better(
            self.error_of_better, self.error, CLEARLY_TIMES, CLEARLY_MORE
        )


def misfits(
    potential: Potential, structures: Iterable[Structure], elements: Mapping[str, Iterable[str]]
) -> list[Misfit]:
    """Find the levels of theory whose labelled structures do not fit their heads.

    `elements` maps levels of theory to the symbols that their heads have learned. Other levels, and
    structures with other elements, are left out.
    """
    known = {
        level: {atomic_numbers[symbol] for symbol in symbols} for level, symbols in elements.items()
    }
    by_level: dict[str, list[Structure]] = {level: [] for level in known}
    for structure in structures:
        level = structure.level_of_theory
        if structure.energy is not None and _elements(structure) <= known.get(level, set()):
            by_level[level].append(structure)

    found = []
    for level, own in by_level.items():
        if len(own) < FEWEST:
            continue
        misfit = _misfit(potential, level, own, known)
        if misfit is not None:
            found.append(misfit)
    return found


def swapped(found: list[Misfit]) -> list[str]:
    """Levels whose names are clearly swapped: each fits the head of the next one, in a cycle.

    The result is empty if there is no such cycle.
    """
    better = {misfit.level: misfit.better for misfit in found if misfit.is_clear}
    for start in better:
        circle = [start]
        while (following := better.get(circle[-1])) is not None and following not in circle:
            circle.append(following)
        if following == start:
            return circle
    return []


def _misfit(
    potential: Potential, level: str, own: list[Structure], known: Mapping[str, set[int]]
) -> Misfit | None:
    errors = _errors(potential, level, own)
    error = float(np.median(errors))
    best = Misfit(level, error)
    for other, elements in known.items():
        # indices of the structures that the other head can predict too
        places = [place for place, one in enumerate(own) if _elements(one) <= elements]
        if other == level or len(places) < FEWEST:
            continue
        errors_of_other = _errors(potential, other, [own[place] for place in places])
        error_of_own = float(np.median(errors[places]))
        error_of_other = float(np.median(errors_of_other))
        is_first = best.better is None or error_of_other < best.error_of_better
        if is_first and _fits_better(error_of_other, error_of_own, TIMES, MORE):
            best = Misfit(level, error_of_own, other, error_of_other)
    return best if best.better is not None or error > LARGE else None


def _fits_better(error: float, error_of_named: float, times: float, more: float) -> bool:
    return error_of_named > times * error and error_of_named > error + more


def _errors(potential: Potential, level: str, structures: list[Structure]) -> np.ndarray:
    """|label - prediction| (S,) in eV/atom, with the head of `level` for all structures."""
    as_if = [replace(structure, level_of_theory=level) for structure in structures]
    pairs = predict(potential, as_if).comparable["energy"]  # (S, 2)
    found: np.ndarray = np.abs(pairs[:, 1] - pairs[:, 0])
    return found


def _elements(structure: Structure) -> set[int]:
    return {int(z) for z in structure.elements}
