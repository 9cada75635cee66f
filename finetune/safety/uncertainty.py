"""Makes the record of uncertainty of a model (model_zoo/uncertainty) from its training data.

It uses two kinds of structures. Training structures give the covariance of the readout, the
committee, the Gaussians of the elements, and the form of the predicted spread. Validation
structures, to which no weight was fitted, give every scale: the thresholds of the distance and the
scores of the errors. A third kind, for example a test split, can then judge the result.

There are three ways to one: `make_uncertainty` for a pretrained model, `uncertainty_of_refit` and
`uncertainty_of_folds` for one that has learned from all of its few structures.
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
# Directions in which members differ that are kept; each costs a backward pass in every step of a
# simulation.
NUM_DIRECTIONS = 1
# Structures without which quantiles say nothing.
FEWEST_STRUCTURES = 20
# An element with fewer scores, or from fewer groups of structures, shares those of all others.
FEWEST_SCORES = 300
FEWEST_GROUPS = 20
# Most atoms for the committee, the Gaussians, the form of the spread, and the scores.
MOST_COMMITTEE = 3_000
MOST_FEATURES = 40_000
MOST_FITTED = 8_000
MOST_SCORED = 40_000

# Size of a batch; memory grows with it.
EDGE_BUDGET = 8_000
ATOM_BUDGET = 512

# The share of Gaussian errors within one standard deviation, and the length that as many vectors of
# three such components do not exceed, if the variances of the three add up to 1.
ONE_SIGMA = 0.683
ONE_SIGMA_LENGTH = 1.084
# eV/A; force errors below this are not told apart. The logarithm of zero would be infinite.
FORCE_FLOOR = 1e-3
# eV/A; the same for the predicted force, as an ingredient of the spread.
FORCE_SIZE_FLOOR = 0.02
# eV/A^3, which is 16 MPa; the same for the error of the stress.
STRESS_FLOOR = 1e-4
# Ridge of the offsets of elements, in atoms: one with few atoms stays near the common offset.
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
    """(S,) names; structures of one group, such as a trajectory, are no independent evidence"""
    force_error: np.ndarray
    """(N, 3) eV/A, NaN without a label"""
    label_size: np.ndarray
    """(N,) length of the label, eV/A"""
    ingredients: np.ndarray
    """(4, N) in the order of INGREDIENTS"""
    shares: np.ndarray
    """(N, 3) share of each component in the variance of the committee"""
    disagreement: np.ndarray
    """(N,) largest difference of two members, eV/A"""
    inside: np.ndarray
    """(N,) whether the atom is within the threshold of its element's distance"""
    energy_error: np.ndarray
    """(S,) eV, NaN without a label"""
    energy_deviation: np.ndarray
    """(S,) standard deviation of the energy that the posterior predicts, eV"""
    stress_error: np.ndarray
    """(S,) Frobenius norm of the error of the stress, eV/A^3, NaN without a label"""
    stress_ingredients: np.ndarray
    """(4, S) in the order of STRESS_INGREDIENTS"""

    @property
    def error(self) -> np.ndarray:
        """Length of the error of each force (N,)."""
        return np.linalg.norm(self.force_error, axis=1)

    @property
    def atom_groups(self) -> np.ndarray:
        """The group that each atom belongs to (N,)."""
        return self.groups[self.structure_index]


# Fields of `Observed` whose last dimension counts atoms or structures, instead of the first.
TRANSPOSED = ("ingredients", "stress_ingredients")


@own_modes()
def observe(
    potential: Potential, uncertainty: LevelUncertainty, structures: Sequence[Structure]
) -> Observed:
    """Compare a potential with labels, and keep what its uncertainty says of each atom."""
    levels = potential.config.levels_of_theory
    estimator = Estimator(uncertainty, potential, levels.index(uncertainty.level))
    found: dict[str, list[np.ndarray]] = {}
    first = 0
    for batch in _batches(potential, structures):
        with torch.no_grad():
            prediction = estimator.potential(batch)
        measures = estimator.measures(batch, prediction)
        forces_label = batch.labels["forces"].double()
        stress_error = prediction.stress.double() - batch.labels["stress"].double()
        squares = np.square(measures.forces).sum(0)  # (N, 3)
        total = squares.sum(1, keepdims=True)
        values = {
            "numbers": batch.atomic_numbers.cpu().numpy(),
            "structure_index": batch.structure_index.cpu().numpy() + first,
            "force_error": (prediction.forces.double() - forces_label).cpu().numpy(),
            "label_size": forces_label.norm(dim=1).cpu().numpy(),
            "ingredients": measures.ingredients.T,
            "shares": np.divide(squares, total, out=np.full_like(squares, 1 / 3), where=total > 0),
            "disagreement": measures.disagreements(uncertainty.mixing),
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

    train: structures that the head has learned from, those with rare elements first.
    held_out: structures of `split`, which it has not learned from.
    known: atomic numbers that it has learned.

    Raises TooFewStructuresError.
    """
    scored = _scored(held_out, level)
    draft = uncalibrated(potential, level, train, known=known, split=split)
    shaped = with_spread(draft, observe(potential, draft, _up_to(train, MOST_FITTED)))
    return calibrated(shaped, observe(potential, shaped, scored))


@own_modes()
def uncalibrated(
    potential: Potential, level: str, train: Sequence[Structure], *, known: set[int], split: str
) -> LevelUncertainty:
    """What training structures alone tell: the committee and the Gaussians, without a scale.

    The arguments are those of `make_uncertainty`.
    """
    head = potential.config.levels_of_theory.index(level)
    # the gradients of all features take the same memory again and again
    keep_freed_memory()
    committee = committee_of_readouts(
        potential, head, _up_to(train, MOST_COMMITTEE), known_e0=known, members=NUM_MEMBERS
    )
    directions, mixing = principal_directions(committee)
    features, numbers = atom_features(potential, _up_to(train, MOST_FEATURES))
    return _draft(committee, directions, mixing, ElementGaussians.of(features, numbers), split)


@own_modes()
def recalibrated(
    potential: Potential,
    uncertainty: LevelUncertainty,
    held_out: Sequence[Structure],
    *,
    split: str,
) -> LevelUncertainty:
    """The same uncertainty with all scales from other structures, also of another kind.

    Committee, Gaussians and the form of the spread stay: they come from the training structures.
    held_out: structures of `split`. Raises TooFewStructuresError.
    """
    scored = _scored(held_out, uncertainty.level)
    # without the old scale of the energy, which would be counted twice
    unscaled = replace(uncertainty, energy_scale=1.0, calibrated_on=split)
    return calibrated(unscaled, observe(potential, unscaled, scored))


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

    No structure is left to judge by. So the scores are the errors of K refits, each on the part of
    the structures that it left out (cross-conformal prediction: Vovk, Annals of Mathematics and
    Artificial Intelligence 74, 2015). The scatter of these refits is the committee: the
    delete-one-group jackknife, whose variance is (K - 1) times that of the K refits.

    The same errors give both the form of the spread and its scale. Errors on learned structures
    would not do for the form: a few structures can be fitted almost exactly. Some things have seen
    all structures even so: what was set up before the refit, such as E0, the posterior covariance,
    and the choice of the prior.

    structures: those of the refit, in its order. posterior: that of the refit, with `left_out`.
    Raises TooFewStructuresError without forces.
    """
    left_out = posterior.left_out
    assert left_out is not None, "a stored posterior does not know what was left out"
    keep_freed_memory()
    head = potential.config.levels_of_theory.index(posterior.level_of_theory)
    features, numbers = atom_features(potential, structures)
    draft = _draft_of_refit(
        posterior, ElementGaussians.of(features, numbers), "structures left out of the refit"
    )

    num_atoms = [len(structure) for structure in structures]
    structure_of_atom = np.repeat(np.arange(len(structures)), num_atoms)
    seen = []
    for part, change in zip(left_out.parts, left_out.changes, strict=True):
        without = copy.deepcopy(potential)
        add_to_head(without, head, change, posterior.new_elements, posterior.elements)
        others = ~np.isin(structure_of_atom, part)
        draft_of_part = draft
        if others.any():
            # The Gaussians must not know the part either: among few atoms, one is nearer to a
            # Gaussian that it was part of than a new atom is.
            gaussians = ElementGaussians.of(features[others], numbers[others])
            draft_of_part = replace(draft, gaussians=gaussians)
        seen.append(observe(without, draft_of_part, [structures[place] for place in part]))
    left_out_errors = joined(seen)
    return calibrated(with_spread(draft, left_out_errors), left_out_errors)


@dataclass(frozen=True)
class TrainedFold:
    """A whole training without a part of the structures."""

    potential: Potential
    posterior: Posterior
    """Of the closed-form refit that the training ended with."""
    learned: Sequence[Structure]
    left_out: Sequence[Structure]


@own_modes()
def uncertainty_of_folds(
    potential: Potential,
    structures: Sequence[Structure],
    posterior: Posterior,
    folds: Sequence[TrainedFold],
) -> LevelUncertainty:
    """The uncertainty of a head whose network was trained on all of a few structures.

    A refit that leaves structures out would not do here: the features below it have seen them. So
    the whole training is repeated without each part. The scores are the errors on the part, over
    the spread that this training predicts by itself (cross-conformal prediction, as in
    `uncertainty_of_refit`). Only the settings were chosen with all structures.

    structures: those that `potential` has learned from. posterior: that of its last refit.
    Raises TooFewStructuresError without forces.
    """
    keep_freed_memory()
    split = "structures left out of the training"

    seen = []
    for fold in folds:
        gaussians = ElementGaussians.of(*atom_features(fold.potential, fold.learned))
        draft_of_fold = _draft_of_refit(fold.posterior, gaussians, split)
        seen.append(observe(fold.potential, draft_of_fold, fold.left_out))
    left_out_errors = joined(seen)

    gaussians = ElementGaussians.of(*atom_features(potential, structures))
    draft = _draft_of_refit(posterior, gaussians, split)
    return calibrated(with_spread(draft, left_out_errors), left_out_errors)


def _draft_of_refit(
    posterior: Posterior, gaussians: ElementGaussians, split: str
) -> LevelUncertainty:
    """All but the spread and the scales. The members of the committee each left a part out."""
    left_out = posterior.left_out
    assert left_out is not None, "a stored posterior does not know what was left out"
    size = posterior.size
    num_parameters = len(posterior.covariance)
    # a committee has weights that all elements share and E0, but no own weights of new elements
    kept = np.r_[0:size, num_parameters - len(posterior.elements) : num_parameters]
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
    """Several observations as one; structures are counted on from one to the next."""
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
    """An uncertainty with all but the spread and the scales, which are neutral for now."""
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
    """Directions (K, d) in which members differ most, and the members (M, K) as sums of them.

    "Most" is by the change of what was fitted: weights are measured by the inverse of their
    posterior covariance, which is the normal matrix of forces and energies. So the committee loses
    as little as possible of the spread of the forces when it is cut to few directions.
    """
    members = committee.members
    number, size = members.shape
    factor = np.linalg.cholesky(committee.covariance[:size, :size])
    whitened = np.linalg.solve(factor, members.T).T
    left, _, _ = np.linalg.svd(whitened, full_matrices=False)
    left = left[:, :NUM_DIRECTIONS]
    return left.T @ members / number**0.5, left * number**0.5


def with_spread(draft: LevelUncertainty, seen: Observed) -> LevelUncertainty:
    """The draft with a spread, and the form of that of the stress, fitted to observed errors.

    The logarithm of the error is fitted by a power of each ingredient, an offset that all elements
    share, and one of each element.

    Raises TooFewStructuresError without forces.
    """
    labelled = np.isfinite(seen.error) & np.isfinite(seen.ingredients).all(0)
    if not labelled.any():
        raise TooFewStructuresError(
            "no structure has forces, which the spread is fitted to",
            remedy="name data with forces",
        )
    numbers = seen.numbers[labelled]
    ingredients = seen.ingredients[:, labelled]
    target = np.log(seen.error[labelled] + FORCE_FLOOR)

    floors = _floors(ingredients)
    floors[INGREDIENTS.index("force")] = FORCE_SIZE_FLOOR
    logarithms, telling = _telling_logarithms(ingredients, floors)
    elements, place = np.unique(numbers, return_inverse=True)
    num_atoms = len(target)
    num_powers = len(INGREDIENTS)

    # one row for each atom, and one of the ridge for the offset of each element
    rows = np.zeros((num_atoms + len(elements), num_powers + 1 + len(elements)))
    rows[:num_atoms, :num_powers] = logarithms.T
    rows[:num_atoms, num_powers] = 1.0
    rows[np.arange(num_atoms), num_powers + 1 + place] = 1.0
    ridge_rows = np.arange(len(elements))
    rows[num_atoms + ridge_rows, num_powers + 1 + ridge_rows] = OFFSET_RIDGE**0.5
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
    """The x (P,) that minimises |rows x - target| above lower bounds; 0 for columns of zeros.

    Such columns are left out of the fit. The method is the one with an active set (BVLS): the
    number of columns is small, and SciPy's reflective method multiplies an infinite step by zero
    when the solution lies on a bound.
    """
    matters = rows.any(0)
    bounds = (lower[matters], np.inf)
    solution = np.zeros(rows.shape[1])
    solution[matters] = lsq_linear(rows[:, matters], target, bounds=bounds, method="bvls").x
    return solution


def _floors(ingredients: np.ndarray) -> np.ndarray:
    """A hundredth of the median of each ingredient (4, N): smaller values are not told apart."""
    return np.maximum(0.01 * np.median(ingredients, axis=1), 1e-9)


def _telling_logarithms(
    ingredients: np.ndarray, floors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms (4, N) of ingredients, and which of the 4 vary enough; 0 for those that do not.

    An ingredient that is the same everywhere, such as zero, would get any power that rounding asks
    for.
    """
    logarithms = np.log(ingredients + floors[:, None])
    telling = np.ptp(logarithms, axis=1) > LEAST_RANGE
    return np.where(telling[:, None], logarithms, 0.0), telling


def _stress_without_scores(seen: Observed) -> StressUncertainty | None:
    """The form of the spread of the stress, fitted in the same way as that of the forces.

    None with fewer labelled stresses than quantiles need: the fit of four powers needs as many.
    """
    labelled = np.isfinite(seen.stress_error) & np.isfinite(seen.stress_ingredients).all(0)
    if labelled.sum() < FEWEST_STRUCTURES:
        return None
    ingredients = seen.stress_ingredients[:, labelled]
    floors = _floors(ingredients)
    logarithms, telling = _telling_logarithms(ingredients, floors)
    rows = np.vstack([logarithms, np.ones(labelled.sum())]).T
    target = np.log(seen.stress_error[labelled] + STRESS_FLOOR)
    lower = np.append(np.zeros(len(STRESS_INGREDIENTS)), -np.inf)
    solution = _bounded_least_squares(rows, target, lower)
    exponents = np.where(telling, solution[:-1], 0.0)
    return StressUncertainty(exponents, floors, float(solution[-1]), Scores.of(np.empty(0), 0))


def _calibrated_stress(
    shaped: StressUncertainty | None, held_out: Observed
) -> StressUncertainty | None:
    """The same with scores of held-out structures; None if too few of them have a stress."""
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
    """The same with all scales from held-out structures. Raises TooFewStructuresError."""
    known = np.isfinite(held_out.ingredients).all(0)
    labelled = known & np.isfinite(held_out.error)
    if not labelled.any():
        raise TooFewStructuresError(
            f"no held-out structure at {shaped.level} has forces",
            remedy="hold out structures with forces",
        )
    has_energy = np.isfinite(held_out.energy_error)
    if not has_energy.any():
        raise TooFewStructuresError(
            f"no held-out structure at {shaped.level} has an energy",
            remedy="hold out structures with energies",
        )
    spread = shaped.spread(held_out.ingredients, held_out.numbers)
    scores = held_out.error[labelled] / spread[labelled]
    # one deviation covers the share that it covers of Gaussian errors; tails make the RMS useless
    unit = float(np.quantile(scores, ONE_SIGMA)) / ONE_SIGMA_LENGTH
    numbers = held_out.numbers[labelled]
    names = held_out.atom_groups[labelled]
    scaled = replace(
        shaped, offsets=shaped.offsets + np.log(unit), groups=element_groups(numbers, names)
    )

    energy_scores = np.abs(held_out.energy_error[has_energy])
    energy_scores = energy_scores / np.maximum(held_out.energy_deviation[has_energy], 1e-12)
    energy_scale = max(float(np.quantile(energy_scores, ONE_SIGMA)), 1e-12)
    num_energy_groups = len(np.unique(held_out.groups[has_energy]))
    return replace(
        scaled,
        gaussians=_with_thresholds(shaped.gaussians, held_out, known),
        force_scores=_scores_by_group(scaled, scores / unit, numbers, names),
        energy_scores=Scores.of(energy_scores / energy_scale, num_energy_groups),
        energy_scale=energy_scale,
        alignment=_alignment(held_out, labelled),
        stress=_calibrated_stress(shaped.stress, held_out),
    )


def _scores_by_group(
    uncertainty: LevelUncertainty, scores: np.ndarray, numbers: np.ndarray, names: np.ndarray
) -> list[Scores]:
    """The scores of atoms (N,) for each group of elements of an uncertainty.

    numbers: (N,) atomic numbers. names: (N,) the groups of structures that the atoms belong to.
    """
    place = uncertainty.group_of(numbers)
    found = []
    for index in range(len(uncertainty.groups)):
        chosen = place == index
        if not chosen.any():
            # all elements are common, and the last group, that of all others, takes all scores
            chosen = np.ones(len(place), bool)
        found.append(Scores.of(scores[chosen], len(np.unique(names[chosen]))))
    return found


def element_groups(numbers: np.ndarray, names: np.ndarray) -> list[np.ndarray]:
    """Atomic numbers in each group of elements, from those of atoms (N,).

    names: (N,) the groups of structures that the atoms belong to. An element with enough atoms from
    enough of them has a group of its own. The last group is empty and stands for all others.
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
    """The same with the distances that 1 % of the held-out atoms exceed as thresholds.

    Those of one element, or for rare elements those of all rare ones together.
    """
    numbers = held_out.numbers[known]
    distances = held_out.ingredients[INGREDIENTS.index("distance"), known]
    common = np.concatenate(element_groups(numbers, held_out.atom_groups[known]))
    rare = ~np.isin(numbers, common)
    of_rare = distances[rare] if rare.sum() >= FEWEST_SCORES else distances
    thresholds = np.full(len(gaussians.elements), Scores.of(of_rare, 1).quantile(INSIDE))
    for z in common:
        of_element = Scores.of(distances[numbers == z], 1)
        thresholds[gaussians.elements == z] = of_element.quantile(INSIDE)
    return replace(gaussians, thresholds=thresholds)


def _alignment(held_out: Observed, labelled: np.ndarray) -> float:
    """The share w of the variance of the errors that points where the committee differs.

    If component c has the share s_c of the variance of the committee, then the error e satisfies

        mean of sum_c s_c e_c^2 / |e|^2 = (1 - w) / 3 + w mean of sum_c s_c^2
    """
    errors = np.square(held_out.force_error[labelled])
    total = errors.sum(1)
    shares = held_out.shares[labelled][total > 0]
    along = (shares * errors[total > 0] / total[total > 0, None]).sum(1).mean()
    most = np.square(shares).sum(1).mean()
    return float(np.clip((along - 1 / 3) / max(most - 1 / 3, 1e-6), 0.0, 1.0))


def _up_to(structures: Sequence[Structure], most: int) -> list[Structure]:
    """The first structures, as many as have at most `most` atoms together, but at least one."""
    chosen: list[Structure] = []
    total = 0
    for structure in structures:
        # no smaller ones further on instead: the choice must not depend on the size
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
