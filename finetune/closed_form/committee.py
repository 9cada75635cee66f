"""A committee of readouts on frozen features: what the training data leave open.

The refit (refit.py) asks whether the weights should move. On the data that a model was trained on,
the answer is no. The refit then chooses the strongest prior, and both its posterior and its
bootstrap show no uncertainty at all.

Here the question is which other weights would have explained the data about as well. So the prior
is weak, and the members are refits to parts of the data that are drawn with replacement. Errors
within one structure are correlated: the spread of the members reflects that, the posterior does
not.
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
from .ridge import NormalEquations, bootstrap_draws, posterior_covariance


# Precision of the prior of the weights, in units of the mean diagonal of the normal matrix. It is
# weak: it holds only directions in which hardly any training structure has features.
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
    structures = list(structures)
    elements = np.unique(np.concatenate([structure.atomic_numbers for structure in structures]))
    unknowns = Unknowns(potential.readout.weight.shape[1], np.empty(0, dtype=int), elements)
    parts, _ = parts_of(structures)
    folds, _ = folds_of(
        potential,
        head,
        structures,
        parts,
        unknowns,
        RefitConfig(),
        LabelWeights.equal(len(structures)),
        by_directions=False,
    )
    equations = [fold.all for fold in folds]
    total = NormalEquations.total(equations)
    diagonal_of_weights = np.diagonal(total.matrix)[: unknowns.size]
    precision = unknowns.pattern(
        # a matrix of zeros, without any label, has no unit of its own
        shared=STRENGTH * (float(diagonal_of_weights.mean()) or 1.0),
        e0=reference_precision(elements, known_e0),
    )

    best = total.solve(precision)
    differences = np.empty((members, unknowns.size))
    for index, drawn in enumerate(bootstrap_draws(equations, members, seed)):
        differences[index] = (drawn.solve(precision) - best)[: unknowns.size]
    return Committee(
        level_of_theory=potential.config.levels_of_theory[head],
        covariance=posterior_covariance(total.matrix, precision),
        members=differences,
        elements=elements,
    )
