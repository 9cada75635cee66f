"""A committee of readouts on frozen features: what the training data leave open.

The refit (refit.py) asks whether the weights should move. For the data that a model was trained on
the answer is no, its prior is then as strong as can be, and both its posterior and its bootstrap
refits say that there is no uncertainty at all. Here the question is which other weights would have
explained the data about as well: the prior is weak, and members are refits to structures that are
drawn with replacement. Their spread includes that errors of one structure are alike, which the
posterior does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from .design_rows import LabelWeights, RefitConfig, Unknowns
from .reference_energies import reference_precision
from .refit import folds_of, parts_of
from .ridge import NormalEquations, posterior_covariance, solve_ridge


# Precision of the prior of the weights, in units of the mean diagonal of the normal matrix. It
# keeps only directions in which hardly any training structure has features from being free.
STRENGTH = 1e-4


@dataclass(frozen=True)
class Committee:
    """Weights around those of one head: d shared weights, and E0 of Z elements; P = d + Z."""

    level_of_theory: str
    covariance: np.ndarray
    """(P, P) posterior covariance, in the units of `Posterior`."""
    members: np.ndarray
    """(M, d) differences of the weights of each member from those that fit all structures best."""
    elements: np.ndarray
    """(Z,) atomic numbers with an E0."""


def committee_of_readouts(
    potential: Potential,
    head: int,
    structures: Sequence[Structure],
    *,
    known_e0: set[int],
    members: int,
    seed: int = 0,
) -> Committee:
    """Bootstrap refits of one head to structures that it has learned from.

    known_e0: atomic numbers whose E0 the head has learned. The potential does not change.
    """
    listed = list(structures)
    elements = np.unique(np.concatenate([structure.atomic_numbers for structure in listed]))
    unknowns = Unknowns(potential.readout.weight.shape[1], np.empty(0, dtype=int), elements)
    parts, _ = parts_of(listed)
    folds, _ = folds_of(
        potential,
        head,
        listed,
        parts,
        unknowns,
        RefitConfig(),
        LabelWeights.equal(len(listed)),
        by_directions=False,
    )
    equations = [fold.all for fold in folds]
    total = NormalEquations.total(equations)
    of_weights = np.diagonal(total.matrix)[: unknowns.size]
    precision = unknowns.pattern(
        shared=STRENGTH * (float(of_weights.mean()) or 1.0),
        e0=reference_precision(elements, known_e0),
    )

    best = total.solve(precision)
    generator = np.random.default_rng(seed)
    equal_chances = np.full(len(equations), 1 / len(equations))
    differences = np.empty((members, unknowns.size))
    for index in range(members):
        counts = generator.multinomial(len(equations), equal_chances)
        matrix = sum(count * part.matrix for count, part in zip(counts, equations, strict=True))
        moment = sum(count * part.moment for count, part in zip(counts, equations, strict=True))
        solution = solve_ridge(matrix, precision, moment)
        differences[index] = (solution - best)[: unknowns.size]
    return Committee(
        level_of_theory=potential.config.levels_of_theory[head],
        covariance=posterior_covariance(total.matrix, precision),
        members=differences,
        elements=elements,
    )
