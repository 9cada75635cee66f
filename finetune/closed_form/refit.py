"""Closed-form refit of the linear readout on a frozen network.

Energies, forces and stress are linear in the readout weights and E0 (design_rows.py), so that the
minimum of

    sum over labels of |prediction - label|^2 / noise^2 + sum_p precision_p change_p^2

is one linear solve: a ridge regression toward the pretrained weights (ridge.py). Own weights are
refitted for elements that the head never saw; E0 has the prior of reference_energies.py. Folds that
are left out decide how strong the prior of the weights is (prior.py), above a least precision.

How much one kind of label counts against another is estimated too. Its assumed noise is multiplied
by its RMS error on left-out structures, and the fit is repeated (noise_and_size.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...core.errors import EvenfieldError
from ...core.freed_memory import keep_freed_memory
from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ..heads import add_to_head
from ..target import alike
from .by_directions import VOIGT
from .design_rows import LabelWeights, RefitConfig, Unknowns, design_rows
from .folds import ENERGY_LABELS, Fold
from .noise_and_size import LeastPrecision, best_of_sizes, with_estimated_noise
from .posterior import LeftOut, Posterior
from .prior import Mixture
from .reference_energies import reference_precision
from .ridge import NormalEquations, bootstrap_draws


MAX_FOLDS = 16
# Labels of a kind, over all folds, that judge a choice; more would say nothing new.
MOST_JUDGING = 10_000
# Prior width of the change of a weight, over the RMS of the pretrained weights. Without that bound,
# few structures move the readout so far that it fails on structures unlike them
# (docs/decisions/0033).
WIDTH = 10.0


class NothingToFitError(EvenfieldError):
    """The structures have no label that the refit can use."""


@dataclass(frozen=True)
class RefitReport:
    """Outcome of a refit."""

    rows: int
    """Labels that were used, each component counted."""
    error_before: float
    """RMS error on left-out structures with unchanged weights, in units of the noise."""
    error_after: float
    """The same after the refit."""
    relative_gradient: float
    """|gradient| / |moment| of the objective at its solution: 0 up to rounding.

    The largest among the solutions that are averaged.
    """
    noise: dict[str, float]
    """Estimated noise of a typical structure by label: eV/atom, eV/A, eV/A^3."""
    duplicates: int
    """Structures that are copies of others."""
    features: int | None = None
    """Features that a wide refit uses; None for a refit that had no choice."""


def refit_readout(
    potential: Potential,
    head: int,
    structures: list[Structure],
    *,
    known: set[int],
    known_e0: set[int],
    config: RefitConfig | None = None,
    weights: LabelWeights | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    sizes: Sequence[int] = (),
) -> tuple[RefitReport, Posterior]:
    """Refit readout weights and E0 of one head in place; the network does not change.

    known, known_e0: atomic numbers for which the weights and the E0 of the head were trained.
    weights: of the structures, in their order, and of elements; by default all labels count alike.
    bootstrap: number of refits to folds drawn with replacement, which the posterior will contain.
    sizes: numbers of features to choose from by left-out structures, in growing order; the weights
    of the other features stay as they are, and the posterior has none of them. Without sizes, all
    features are used.

    Raises NothingToFitError without any label, and WeightError for weights that do not fit.
    """
    weights = weights or LabelWeights.equal(len(structures))
    weights.check(len(structures))
    # The gradients of all features take the same memory again and again: three times as fast.
    keep_freed_memory()
    elements = np.unique(np.concatenate([structure.atomic_numbers for structure in structures]))
    new_elements = np.array([z for z in elements if z not in known], dtype=int)
    unknowns = Unknowns(potential.readout.weight.shape[1], new_elements, elements)

    parts, duplicates = parts_of(structures)
    folds, assumed = folds_of(
        potential,
        head,
        structures,
        parts,
        unknowns,
        config or RefitConfig(),
        weights,
        by_directions=bool(sizes),
    )
    if sum(fold.all.rows for fold in folds) == 0:
        raise NothingToFitError(
            "no structure has an energy, forces or stress, so there is nothing to fit"
        )

    least = LeastPrecision(
        weights=_width_of_weights(potential, head) ** -2.0,
        e0=reference_precision(elements, known_e0),
    )
    if sizes:
        fit = best_of_sizes(folds, unknowns, least, sizes)
    else:
        fit = with_estimated_noise(folds, unknowns, least)
    choice = fit.choice
    total = NormalEquations.total(fold.all for fold in fit.folds)
    change = choice.mixture.solve(total)
    add_to_head(potential, head, change, new_elements, elements)

    # The noise differs from structure to structure; the report shows that of a typical one.
    estimated = {name: fit.factor[name] * _median(assumed[name]) for name in choice.held_out}
    drawn = _bootstrap(fit.folds, choice.mixture, bootstrap, seed)
    posterior = Posterior(
        level_of_theory=potential.config.levels_of_theory[head],
        covariance=choice.mixture.covariance(total),
        bootstrap=drawn - change,
        new_elements=new_elements,
        elements=elements,
        noise=estimated,
        left_out=LeftOut(parts, _without_each(fit.folds, total, choice.mixture) - change),
    )
    report = RefitReport(
        rows=total.rows,
        error_before=choice.error_before,
        error_after=choice.error_after,
        relative_gradient=_relative_gradient(total, choice.mixture),
        noise=estimated,
        duplicates=duplicates,
        features=fit.unknowns.size if sizes else None,
    )
    return report, posterior


def parts_of(structures: list[Structure], most: int = MAX_FOLDS) -> tuple[list[list[int]], int]:
    """Places of the structures in at most `most` parts, and how many structures are copies.

    Copies stay in one part: otherwise a left-out structure would have been fitted as its copy.
    """
    groups = alike(structures)
    # the same object may be given twice, with a weight of its own each time
    places: dict[int, list[int]] = {}
    for place, structure in enumerate(structures):
        places.setdefault(id(structure), []).append(place)

    num_parts = min(most, len(groups))
    parts = []
    for first in range(num_parts):
        # dealt out in turn, so that a part is not one stretch of a trajectory
        part = itertools.chain.from_iterable(groups[first::num_parts])
        parts.append([places[id(structure)].pop(0) for structure in part])
    return parts, len(structures) - len(groups)


def folds_of(
    potential: Potential,
    head: int,
    structures: list[Structure],
    parts: list[list[int]],
    unknowns: Unknowns,
    config: RefitConfig,
    weights: LabelWeights,
    *,
    by_directions: bool,
) -> tuple[list[Fold], dict[str, np.ndarray]]:
    """The equations of each part, and the assumed noise of all structures (S,) by label."""
    folds = []
    noise: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in ENERGY_LABELS}
    num_atoms = sum(len(structure) for structure in structures)
    numbers = {
        "energy": len(structures),
        "forces": 3 * num_atoms,
        "stress": len(VOIGT) * len(structures),
    }
    shares_kept = {name: min(1.0, MOST_JUDGING / number) for name, number in numbers.items()}
    for part in parts:
        fold = Fold.empty(unknowns.num)
        own = [structures[place] for place in part]
        own_weights = replace(weights, structures=weights.structures[part])
        for batch in design_rows(
            potential, head, own, unknowns, config, own_weights, by_directions=by_directions
        ):
            fold.add(batch, shares_kept)
            for name in ENERGY_LABELS:
                noise[name].append(batch.noise[name])
        folds.append(fold)
    return folds, {name: np.concatenate(values) for name, values in noise.items()}


def _width_of_weights(potential: Potential, head: int) -> float:
    """The prior width of the change of a weight, in the unit of the weights of `head`.

    Heads differ in their scale, and in how much was left for their readout to learn. So the typical
    size of a weight is taken from all heads together.
    """
    weights = potential.readout.weight.detach().double()  # (heads, d)
    energies = potential.scale.double()[:, None] * weights
    of_all_heads = float(energies.square().mean().sqrt())
    return WIDTH * of_all_heads / float(potential.scale[head])


def _bootstrap(folds: list[Fold], mixture: Mixture, number: int, seed: int) -> np.ndarray:
    """Solutions (number, P) for folds drawn with replacement."""
    # Folds are drawn and not structures: their equations are all that is left of the structures.
    parts = [fold.all for fold in folds]
    solutions = np.empty((number, len(mixture.unchanged)))
    for index, drawn in enumerate(bootstrap_draws(parts, number, seed)):
        solutions[index] = mixture.solve(drawn)
    return solutions


def _without_each(folds: list[Fold], total: NormalEquations, mixture: Mixture) -> np.ndarray:
    """Solutions (F, P) that each leave one of F folds out.

    Prior and noise are not chosen again: they are those of all folds.
    """
    return np.stack([mixture.solve(total - fold.all) for fold in folds])


def _relative_gradient(equations: NormalEquations, mixture: Mixture) -> float:
    """The largest gradient at a solution, over the gradient at no change."""
    scale = max(float(np.linalg.norm(equations.moment)), 1e-300)
    largest = 0.0
    solutions = mixture.solutions(equations)
    for precision, solution in zip(mixture.precisions, solutions, strict=True):
        gradient = equations.matrix @ solution + precision * solution - equations.moment
        largest = max(largest, float(np.linalg.norm(gradient)) / scale)
    return largest


def _median(noise: np.ndarray) -> float:
    noise = noise[np.isfinite(noise)]
    return float(np.median(noise)) if len(noise) else 0.0
