"""Makes the record of uncertainty of a model (model_zoo/uncertainty) from its training data.

Three kinds of structures have a part in it. Training structures give the covariance of the readout,
the committee, the Gaussians of the elements, and the form of the predicted spread. Validation
structures, which no weight was fitted to, give every scale: thresholds of the distance, scores of
the errors. What is left, a test split for example, can judge the result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from scipy.optimize import lsq_linear

from ...core.errors import EvenfieldError
from ...core.freed_memory import keep_freed_memory
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.packing import pack
from ...data_pipelines.structure import MAX_ATOMIC_NUMBER, Structure
from ...model_zoo.potential.potential import Potential
from ...model_zoo.uncertainty.conformal import Scores
from ...model_zoo.uncertainty.distances import ElementGaussians
from ...model_zoo.uncertainty.estimates import Estimator
from ...model_zoo.uncertainty.record import (
    INGREDIENTS,
    STRESS_INGREDIENTS,
    LevelUncertainty,
    StressUncertainty,
)
from ..closed_form.committee import Committee, committee_of_readouts
from ..closed_form.posterior import Posterior
from ..heads import add_to_head


# Members of the committee: bootstrap refits of the readout.
NUM_MEMBERS = 16
# Directions that are kept of them; each costs a backward pass in every step of a simulation.
NUM_DIRECTIONS = 1
# Structures without which quantiles say nothing.
FEWEST_STRUCTURES = 20
# An element with fewer scores, or from fewer groups of structures, shares those of all others.
FEWEST_SCORES = 300
FEWEST_GROUPS = 20
# Atoms that are enough for the committee, the Gaussians, the form of the spread, and the scores.
MOST_COMMITTEE = 3_000
MOST_FEATURES = 40_000
MOST_FITTED = 8_000
MOST_SCORED = 40_000

# Size of a batch; memory grows with it.
EDGE_BUDGET = 8_000
ATOM_BUDGET = 512

# What one standard deviation covers of Gaussian errors, and the length of a vector of three such
# components, with a variance of 1 together, that it covers.
ONE_SIGMA = 0.683
ONE_SIGMA_LENGTH = 1.084
# Errors of forces below this are not told apart (eV/A); the logarithm of zero would be infinite.
FORCE_FLOOR = 1e-3
# The same of the stress (eV/A^3), 16 MPa.
STRESS_FLOOR = 1e-4
# Ridge of the offsets of elements, in atoms: few atoms hardly move them from that of all.
OFFSET_RIDGE = 20.0
# Logarithms of an ingredient that lie closer together than this say nothing about its power.
LEAST_RANGE = 0.01
# Coverage of the thresholds of the distance.
INSIDE = 0.99


class TooFewStructuresError(EvenfieldError):
    """Held-out structures from which no quantile can be taken."""


@dataclass(frozen=True)
class Observed:
    """Errors of labelled structures, and what was predicted of them: N atoms, S structures."""

    numbers: np.ndarray
    """(N,) atomic numbers"""
    structure_index: np.ndarray
    """(N,)"""
    groups: np.ndarray
    """(S,) names; structures of one group, a trajectory for example, are no independent evidence"""
    force_error: np.ndarray
    """(N, 3) eV/A, NaN without a label"""
    label_size: np.ndarray
    """(N,) length of the label, eV/A"""
    ingredients: np.ndarray
    """(4, N)"""
    shares: np.ndarray
    """(N, 3) of the variance of the committee, by component"""
    disagreement: np.ndarray
    """(N,) largest difference of two members, eV/A"""
    inside: np.ndarray
    """(N,)"""
    energy_error: np.ndarray
    """(S,) eV, NaN without a label"""
    energy_deviation: np.ndarray
    """(S,) eV"""
    stress_error: np.ndarray
    """(S,) Frobenius norm of the error of the stress, eV/A^3, NaN without a label"""
    stress_ingredients: np.ndarray
    """(4, S)"""

    @property
    def error(self) -> np.ndarray:
        """Length of the error of each force (N,)."""
        return np.linalg.norm(self.force_error, axis=1)

    @property
    def atom_groups(self) -> np.ndarray:
        """The group that each atom belongs to (N,)."""
        return self.groups[self.structure_index]


# fields of `Observed` whose last dimension counts atoms or structures
TRANSPOSED = ("ingredients", "stress_ingredients")


@own_modes()
def observe(
    potential: Potential, own: LevelUncertainty, structures: Sequence[Structure]
) -> Observed:
    """Compare a potential with labels, and keep what its uncertainty says of each atom."""
    levels = potential.config.levels_of_theory
    estimator = Estimator(own, potential, levels.index(own.level))
    found: dict[str, list[np.ndarray]] = {}
    first = 0
    for batch in _batches(potential, structures):
        with torch.no_grad():
            prediction = estimator.potential(batch)
        measures = estimator.measures(batch, prediction)
        forces_label = batch.labels["forces"].double()
        stress_error = prediction.stress.double() - batch.labels["stress"].double()
        squares = np.square(measures.forces).sum(0)
        total = squares.sum(1, keepdims=True)
        values = {
            "numbers": batch.atomic_numbers.cpu().numpy(),
            "structure_index": batch.structure_index.cpu().numpy() + first,
            "force_error": (prediction.forces.double() - forces_label).cpu().numpy(),
            "label_size": forces_label.norm(dim=1).cpu().numpy(),
            "ingredients": measures.ingredients.T,
            "shares": np.divide(squares, total, out=np.full_like(squares, 1 / 3), where=total > 0),
            "disagreement": measures.disagreements(own.mixing),
            "inside": measures.inside,
            "energy_error": (prediction.energy - batch.labels["energy"]).cpu().numpy(),
            "energy_deviation": estimator.energy_deviations(batch),
            "stress_error": stress_error.flatten(1).norm(dim=1).cpu().numpy(),
            "stress_ingredients": measures.stress_ingredients.T,
        }
        first += batch.num_structures
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    content = {name: np.concatenate(parts) for name, parts in found.items()}
    for name in TRANSPOSED:
        content[name] = content[name].T
    groups = [structure.group or structure.structure_id for structure in structures]
    return Observed(groups=np.array(groups), **content)


@own_modes()
def make_uncertainty(
    potential: Potential,
    level: str,
    train: Sequence[Structure],
    held_out: Sequence[Structure],
    *,
    known: set[int],
    split: str,
) -> LevelUncertainty:
    """The uncertainty of one head of a potential, which does not change.

    train: structures that it has learned from, those with rare elements first.
    held_out: those of `split`, which it has not learned from.
    known: atomic numbers that it has learned.

    Raises TooFewStructuresError.
    """
    scored = _scored(held_out, level)
    head = potential.config.levels_of_theory.index(level)
    # the gradients of all features take the same memory again and again
    keep_freed_memory()
    committee = committee_of_readouts(
        potential, head, _up_to(train, MOST_COMMITTEE), known_e0=known, members=NUM_MEMBERS
    )
    directions, mixing = principal_directions(committee)
    features, numbers = atom_features(potential, _up_to(train, MOST_FEATURES))
    draft = _draft(committee, directions, mixing, ElementGaussians.of(features, numbers), split)
    shaped = with_spread(draft, observe(potential, draft, _up_to(train, MOST_FITTED)))
    return calibrated(shaped, observe(potential, shaped, scored))


@own_modes()
def recalibrated(
    potential: Potential, own: LevelUncertainty, held_out: Sequence[Structure], *, split: str
) -> LevelUncertainty:
    """A record with all scales from other structures, which need not be like those of before.

    Committee, Gaussians and the form of the spread stay: they come from the training structures.
    held_out: those of `split`. Raises TooFewStructuresError.
    """
    scored = _scored(held_out, own.level)
    # without its own scale, which would be counted twice
    bare = replace(own, energy_scale=1.0, calibrated_on=split)
    return calibrated(bare, observe(potential, bare, scored))


def _scored(held_out: Sequence[Structure], level: str) -> list[Structure]:
    """The structures that give the scores. Raises TooFewStructuresError."""
    scored = _up_to(held_out, MOST_SCORED)
    if len(scored) < FEWEST_STRUCTURES:
        raise TooFewStructuresError(
            f"{len(scored)} held-out structures at {level} are too few for quantiles of errors",
            remedy=f"hold out {FEWEST_STRUCTURES} or more: valid_share=0.1 of `evenfield data "
            "convert`",
        )
    return scored


@own_modes()
def uncertainty_of_refit(
    potential: Potential, structures: Sequence[Structure], posterior: Posterior
) -> LevelUncertainty:
    """The uncertainty of a head that was just refitted to all of a few structures.

    None is left to judge by, so that scores are errors of the refits that left a part of the
    structures out, each on its own part (cross-conformal prediction: Vovk, Annals of Mathematics
    and Artificial Intelligence 74, 2015). Their scatter is the committee: the delete-one-group
    jackknife, whose variance is (K - 1) times that of the K refits.

    structures: those of the refit, in their order. posterior: that of the refit.

    The same errors give the form of the spread and its scale. Errors on what was learned would not
    do for the form: a few structures can be fitted almost exactly. What set the potential up before
    the refit, such as E0, has seen all structures, and so have the posterior covariance and the
    prior. Raises TooFewStructuresError without forces.
    """
    left_out = posterior.left_out
    assert left_out is not None
    keep_freed_memory()
    head = potential.config.levels_of_theory.index(posterior.level_of_theory)
    features, numbers = atom_features(potential, structures)
    gaussians = ElementGaussians.of(features, numbers)
    draft = _draft_of_refit(posterior, gaussians, "structures left out of the refit")

    of_atom = np.repeat(np.arange(len(structures)), [len(structure) for structure in structures])
    seen = []
    for part, change in zip(left_out.parts, left_out.changes, strict=True):
        without = copy.deepcopy(potential)
        add_to_head(without, head, change, posterior.new_elements, posterior.elements)
        others = ~np.isin(of_atom, part)
        own = draft
        if others.any():
            # among few atoms, one is nearer to a Gaussian that it was part of than a new one is
            own = replace(draft, gaussians=ElementGaussians.of(features[others], numbers[others]))
        seen.append(observe(without, own, [structures[place] for place in part]))
    left_out_errors = joined(seen)
    return calibrated(with_spread(draft, left_out_errors), left_out_errors)


@dataclass(frozen=True)
class Fold:
    """A model that has not learned from some structures, and what it says about them."""

    potential: Potential
    posterior: Posterior
    """Of the closed-form refit that it ended with."""
    learned: Sequence[Structure]
    left_out: Sequence[Structure]


@own_modes()
def uncertainty_of_folds(
    potential: Potential,
    structures: Sequence[Structure],
    posterior: Posterior,
    folds: Sequence[Fold],
) -> LevelUncertainty:
    """The uncertainty of a head whose network was trained on all of a few structures.

    A refit that leaves structures out would not do here: the features below it have seen them. So
    whole trainings are repeated without each part, and the scores are their errors on it, over the
    spread that each of them predicts by itself (cross-conformal prediction, as in
    `uncertainty_of_refit`). Nothing of a fold has seen its structures but the settings.

    structures: those that `potential` has learned from. posterior: that of its last refit.

    Raises TooFewStructuresError without forces.
    """
    keep_freed_memory()
    split = "structures left out of the training"

    seen = []
    for fold in folds:
        gaussians = ElementGaussians.of(*atom_features(fold.potential, fold.learned))
        own = _draft_of_refit(fold.posterior, gaussians, split)
        seen.append(observe(fold.potential, own, fold.left_out))
    left_out_errors = joined(seen)
    gaussians = ElementGaussians.of(*atom_features(potential, structures))
    draft = _draft_of_refit(posterior, gaussians, split)
    return calibrated(with_spread(draft, left_out_errors), left_out_errors)


def _draft_of_refit(
    posterior: Posterior, gaussians: ElementGaussians, split: str
) -> LevelUncertainty:
    """All but the spread and the scales; the committee are the refits that left a part out."""
    left_out = posterior.left_out
    assert left_out is not None
    size = posterior.size
    # own weights of new elements belong to no committee, whose members share all weights
    kept = np.r_[
        0:size, len(posterior.covariance) - len(posterior.elements) : len(posterior.covariance)
    ]
    changes = left_out.changes
    scatter = changes - changes.mean(0)
    committee = Committee(
        level_of_theory=posterior.level_of_theory,
        covariance=posterior.covariance[np.ix_(kept, kept)],
        members=max(len(changes) - 1, 1) ** 0.5 * scatter[:, :size],
        elements=posterior.elements,
    )
    directions, mixing = principal_directions(committee)
    return _draft(committee, directions, mixing, gaussians, split)


def joined(parts: Sequence[Observed]) -> Observed:
    """What was observed of several lists of structures, as of one."""
    first = np.cumsum([0] + [len(part.groups) for part in parts[:-1]])
    indices = [part.structure_index + offset for part, offset in zip(parts, first, strict=True)]
    content: dict[str, np.ndarray] = {"structure_index": np.concatenate(indices)}
    for field in fields(Observed):
        if field.name not in content:
            axis = 1 if field.name in TRANSPOSED else 0
            values = [getattr(part, field.name) for part in parts]
            content[field.name] = np.concatenate(values, axis)
    return Observed(**content)


def _draft(
    committee: Committee,
    directions: np.ndarray,
    mixing: np.ndarray,
    gaussians: ElementGaussians,
    split: str,
) -> LevelUncertainty:
    """All but the spread and the scales."""
    return LevelUncertainty(
        level=committee.level_of_theory,
        calibrated_on=split,
        factor=np.linalg.cholesky(committee.covariance),
        e0_elements=committee.elements,
        directions=directions,
        mixing=mixing,
        gaussians=gaussians,
        exponents=np.zeros(len(INGREDIENTS)),
        offsets=np.zeros(MAX_ATOMIC_NUMBER + 1),
        floors=np.ones(len(INGREDIENTS)),
        groups=[np.empty(0, int)],
        force_scores=[],
        energy_scores=Scores.of(np.empty(0), 0),
        energy_scale=1.0,
        alignment=0.0,
    )


def principal_directions(committee: Committee) -> tuple[np.ndarray, np.ndarray]:
    """Directions (K, d) in which members differ most, and the members (M, K) as their sums.

    Most by how much they change what was fitted: weights are measured by the inverse of their
    posterior covariance, which is the normal matrix of forces and energies. A truncated committee
    then loses as little as possible of the spread of the forces.
    """
    members = committee.members
    number, size = members.shape
    factor = np.linalg.cholesky(committee.covariance[:size, :size])
    whitened = np.linalg.solve(factor, members.T).T
    left, _, _ = np.linalg.svd(whitened, full_matrices=False)
    left = left[:, :NUM_DIRECTIONS]
    return left.T @ members / number**0.5, left * number**0.5


def with_spread(draft: LevelUncertainty, seen: Observed) -> LevelUncertainty:
    """The draft with a spread that fits the errors of training structures in their logarithms."""
    labelled = np.isfinite(seen.error) & np.isfinite(seen.ingredients).all(0)
    numbers = seen.numbers[labelled]
    ingredients = seen.ingredients[:, labelled]
    target = np.log(seen.error[labelled] + FORCE_FLOOR)

    floors = _floors(ingredients)
    floors[INGREDIENTS.index("force")] = 0.02  # eV/A
    logarithms = np.log(ingredients + floors[:, None])
    # one that is the same for all atoms, such as zero, would get any power that rounding asks for
    telling = np.ptp(logarithms, axis=1) > LEAST_RANGE
    elements, place = np.unique(numbers, return_inverse=True)
    num_powers = len(INGREDIENTS)

    rows = np.zeros((len(target) + len(elements), num_powers + 1 + len(elements)))
    rows[: len(target), :num_powers] = np.where(telling[:, None], logarithms, 0.0).T
    rows[: len(target), num_powers] = 1.0
    rows[np.arange(len(target)), num_powers + 1 + place] = 1.0
    # one row of the ridge for the offset of each element
    own = np.arange(len(elements))
    rows[len(target) + own, num_powers + 1 + own] = OFFSET_RIDGE**0.5
    padded = np.concatenate([target, np.zeros(len(elements))])
    lower = np.full(rows.shape[1], -np.inf)
    # a force further from what is known must never look more certain
    lower[:num_powers] = 0.0
    solution = _bounded_least_squares(rows, padded, lower)

    offsets = np.full(MAX_ATOMIC_NUMBER + 1, solution[num_powers])
    offsets[elements] += solution[num_powers + 1 :]
    exponents = np.where(telling, solution[:num_powers], 0.0)
    return replace(
        draft,
        exponents=exponents,
        offsets=offsets,
        floors=floors,
        stress=_stress_without_scores(seen),
    )


def _bounded_least_squares(rows: np.ndarray, target: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """x (P,) of |rows x - target| with lower bounds; zero where a column has no effect.

    The step along such a column is infinite, which SciPy multiplies by zero.
    """
    matters = rows.any(0)
    solution = np.zeros(rows.shape[1])
    solution[matters] = lsq_linear(rows[:, matters], target, bounds=(lower[matters], np.inf)).x
    return solution


def _floors(ingredients: np.ndarray) -> np.ndarray:
    """A hundredth of the median of each ingredient (4, N): below it, it says nothing."""
    return np.maximum(0.01 * np.median(ingredients, axis=1), 1e-9)


def _stress_without_scores(seen: Observed) -> StressUncertainty | None:
    """The form of the spread of the stress, fitted as that of the forces is.

    None with fewer labelled stresses than quantiles need: four powers want as many.
    """
    labelled = np.isfinite(seen.stress_error) & np.isfinite(seen.stress_ingredients).all(0)
    if labelled.sum() < FEWEST_STRUCTURES:
        return None
    ingredients = seen.stress_ingredients[:, labelled]
    floors = _floors(ingredients)
    logarithms = np.log(ingredients + floors[:, None])
    telling = np.ptp(logarithms, axis=1) > LEAST_RANGE
    powers = np.where(telling[:, None], logarithms, 0.0)
    rows = np.vstack([powers, np.ones(labelled.sum())]).T
    target = np.log(seen.stress_error[labelled] + STRESS_FLOOR)
    lower = np.append(np.zeros(len(STRESS_INGREDIENTS)), -np.inf)
    solution = _bounded_least_squares(rows, target, lower)
    exponents = np.where(telling, solution[:-1], 0.0)
    return StressUncertainty(exponents, floors, float(solution[-1]), Scores.of(np.empty(0), 0))


def _calibrated_stress(
    shaped: StressUncertainty | None, held_out: Observed
) -> StressUncertainty | None:
    """The same with scores of structures that were held out; None where too few have a stress."""
    if shaped is None:
        return None
    spread = shaped.spread(held_out.stress_ingredients)
    labelled = np.isfinite(held_out.stress_error) & np.isfinite(spread)
    if labelled.sum() < FEWEST_STRUCTURES:
        return None
    scores = held_out.stress_error[labelled] / spread[labelled]
    groups = len(np.unique(held_out.groups[labelled]))
    return replace(shaped, scores=Scores.of(scores, groups))


def calibrated(shaped: LevelUncertainty, held_out: Observed) -> LevelUncertainty:
    """The same with all scales from structures that were held out."""
    own = shaped
    known = np.isfinite(held_out.ingredients).all(0)
    labelled = known & np.isfinite(held_out.error)
    if not labelled.any():
        raise TooFewStructuresError(
            f"no held-out structure at {own.level} has forces",
            remedy="hold out structures with forces",
        )
    if not np.isfinite(held_out.energy_error).any():
        raise TooFewStructuresError(
            f"no held-out structure at {own.level} has an energy",
            remedy="hold out structures with energies",
        )
    spread = own.spread(held_out.ingredients, held_out.numbers)
    scores = held_out.error[labelled] / spread[labelled]
    # one deviation covers what it covers of Gaussian errors; tails make the RMS useless
    unit = float(np.quantile(scores, ONE_SIGMA)) / ONE_SIGMA_LENGTH
    own = replace(own, offsets=own.offsets + np.log(unit))
    scores = scores / unit

    numbers = held_out.numbers[labelled]
    names = held_out.atom_groups[labelled]
    groups = element_groups(numbers, names)
    own = replace(own, groups=groups)
    place = own.group_of(numbers)
    force_scores = []
    for index in range(len(groups)):
        # the last group has no atoms of its own where all elements are common: then it is all
        chosen = place == index if (place == index).any() else np.ones(len(place), bool)
        force_scores.append(Scores.of(scores[chosen], len(np.unique(names[chosen]))))

    has_energy = np.isfinite(held_out.energy_error)
    energy_scores = np.abs(held_out.energy_error[has_energy])
    energy_scores = energy_scores / np.maximum(held_out.energy_deviation[has_energy], 1e-12)
    energy_scale = max(float(np.quantile(energy_scores, ONE_SIGMA)), 1e-12)
    gaussians = _with_thresholds(own.gaussians, held_out, known)
    return replace(
        own,
        gaussians=gaussians,
        force_scores=force_scores,
        energy_scores=Scores.of(
            energy_scores / energy_scale, len(np.unique(held_out.groups[has_energy]))
        ),
        energy_scale=energy_scale,
        alignment=_alignment(held_out, labelled),
        stress=_calibrated_stress(own.stress, held_out),
    )


def element_groups(numbers: np.ndarray, names: np.ndarray) -> list[np.ndarray]:
    """Atomic numbers of each group, from those of atoms (N,) and the names of their structures.

    An element with enough atoms from enough structures has a group of its own; the last group is
    that of all others.
    """
    groups = []
    for z in np.unique(numbers):
        of_element = numbers == z
        is_enough = of_element.sum() >= FEWEST_SCORES
        if is_enough and len(np.unique(names[of_element])) >= FEWEST_GROUPS:
            groups.append(np.array([z]))
    return [*groups, np.empty(0, int)]


def _with_thresholds(
    gaussians: ElementGaussians, held_out: Observed, known: np.ndarray
) -> ElementGaussians:
    """Distances that 1 % of held-out atoms exceed, of an element or of all rare ones together."""
    numbers = held_out.numbers[known]
    distances = held_out.ingredients[INGREDIENTS.index("distance"), known]
    names = held_out.atom_groups[known]
    own_groups = element_groups(numbers, names)
    common = np.concatenate(own_groups)
    rare = ~np.isin(numbers, common)
    of_rare = distances[rare] if rare.sum() >= FEWEST_SCORES else distances
    thresholds = np.full(len(gaussians.elements), Scores.of(of_rare, 1).quantile(INSIDE))
    for z in common:
        of_element = Scores.of(distances[numbers == z], 1)
        thresholds[gaussians.elements == z] = of_element.quantile(INSIDE)
    return replace(gaussians, thresholds=thresholds)


def _alignment(held_out: Observed, labelled: np.ndarray) -> float:
    """The share w of the variance of errors that lies where the committee differs.

    With shares s_c of the committee, the mean of s_c e_c^2 / |e|^2, summed over components, is
    (1 - w) / 3 + w sum_c s_c^2.
    """
    errors = np.square(held_out.force_error[labelled])
    total = errors.sum(1)
    shares = held_out.shares[labelled][total > 0]
    along = (shares * errors[total > 0] / total[total > 0, None]).sum(1).mean()
    most = np.square(shares).sum(1).mean()
    return float(np.clip((along - 1 / 3) / max(most - 1 / 3, 1e-6), 0.0, 1.0))


def _up_to(structures: Sequence[Structure], most: int) -> list[Structure]:
    """The first structures, with at most this many atoms together but for the first."""
    chosen: list[Structure] = []
    total = 0
    for structure in structures:
        # smaller ones further on are not taken: the choice must not depend on the size
        if chosen and total + len(structure) > most:
            break
        chosen.append(structure)
        total += len(structure)
    return chosen


@own_modes()
def atom_features(
    potential: Potential, structures: Sequence[Structure]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, d) and atomic numbers (N,) of all atoms."""
    features = []
    numbers = []
    for batch in _batches(potential, structures):
        with torch.no_grad():
            vectors, tiles = potential.edge_vectors(batch)
            phi = potential.features(batch.atomic_numbers, vectors, tiles)
        features.append(phi.cpu().double().numpy())
        numbers.append(batch.atomic_numbers.cpu().numpy())
    return np.concatenate(features), np.concatenate(numbers)


def _batches(potential: Potential, structures: Sequence[Structure]) -> Iterator[Batch]:
    """The structures in their order, several at a time."""
    parameter = next(potential.parameters())
    config = potential.config
    graphs = (
        Batch.from_structure(structure, config.cutoff, config.levels_of_theory, parameter.dtype)
        for structure in structures
    )
    # a look-ahead of one keeps the order
    for graph_list in pack(graphs, EDGE_BUDGET, ATOM_BUDGET, look_ahead=1):
        yield Batch.join(graph_list).to(parameter.device)
