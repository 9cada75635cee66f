"""Normal equations against dense least squares; cross-validation against refits without a fold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from evenfield.finetune.closed_form.design_rows import DesignRows
from evenfield.finetune.closed_form.folds import Fold
from evenfield.finetune.closed_form.prior import (
    DRAWS,
    LEAST_ERROR,
    SHARED_RATIOS,
    STRENGTHS,
    Mixture,
    choose_prior,
)
from evenfield.finetune.closed_form.ridge import (
    NormalEquations,
    posterior_covariance,
    solve_ridge,
)


# 4 shared weights, 3 own weights, and 1 unknown with a fixed prior (E0)
NUM = 8
WEIGHTS = slice(0, 7)


def pattern(*, shared: float = 0.0, own: float = 0.0, fixed: float = 0.0) -> np.ndarray:
    return np.repeat([shared, own, fixed], [4, 3, 1])


SHARED = pattern(shared=1.0)
OWN = pattern(own=1.0)
FIXED = pattern(fixed=0.5)


class DenseFold(NamedTuple):
    """The rows that a fold was made of."""

    energy_rows: np.ndarray
    energies: np.ndarray
    force_rows: np.ndarray
    forces: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        return np.vstack([self.energy_rows, self.force_rows])

    @property
    def targets(self) -> np.ndarray:
        return np.concatenate([self.energies, self.forces])


def random_rows(
    rng: np.random.Generator, truth: np.ndarray, num: int, noise: float, *, forces: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    # columns of different size, as features have
    rows = rng.normal(size=(num, len(truth))) * np.logspace(0, -1, len(truth))
    if forces:
        # E0 exerts no force
        rows[:, -1] = 0.0
    targets = rows @ truth + noise * rng.normal(size=num)
    return rows, targets


def make_folds(
    num_folds: int = 5, noise: float = 0.1, forces: int = 6, energies: int = 2, truth=None
) -> tuple[list[Fold], list[DenseFold], np.ndarray]:
    """Folds, their dense rows, and the unknowns that the targets were made of."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=NUM) if truth is None else truth
    folds = []
    dense = []
    for _ in range(num_folds):
        energy = random_rows(rng, truth, energies, noise)
        force = random_rows(rng, truth, forces, noise, forces=True)

        folds.append(fold_of(energy, force))
        dense.append(DenseFold(*energy, *force))
    return folds, dense, truth


def fold_of(energy: tuple[np.ndarray, np.ndarray], force: tuple[np.ndarray, np.ndarray]) -> Fold:
    """Of labels whose noise was one, so that rows are in the units of the labels."""
    rows = {"energy": energy, "forces": force, "stress": (np.empty((0, NUM)), np.empty(0))}
    ones = {name: np.ones(len(targets)) for name, (_, targets) in rows.items()}
    fold = Fold.empty(NUM)
    fold.add(DesignRows(rows, noise=ones, units=ones, weights=ones))
    return fold


def dense_ridge(rows: np.ndarray, target: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """By the singular values of the augmented matrix, not by normal equations."""
    prior_rows = np.diag(np.sqrt(precision))
    prior_target = np.zeros(len(precision))
    augmented = np.vstack([rows, prior_rows])
    return np.linalg.lstsq(augmented, np.concatenate([target, prior_target]), rcond=None)[0]


# --- equations


def test_solution_equals_dense_least_squares():
    rng = np.random.default_rng(1)
    rows, target = random_rows(rng, rng.normal(size=NUM), 30, 0.3)
    equations = NormalEquations.empty(NUM)
    # in three parts, as a stream of batches brings them
    for part in np.split(np.arange(30), [7, 20]):
        equations.add(rows[part], target[part])

    for precision in (np.zeros(NUM), rng.uniform(0.1, 10, NUM)):
        expected = dense_ridge(rows, target, precision)
        assert np.allclose(equations.solve(precision), expected, rtol=1e-9, atol=1e-12)


def test_squared_error_equals_that_of_the_rows():
    rng = np.random.default_rng(2)
    rows, target = random_rows(rng, rng.normal(size=NUM), 30, 0.3)
    equations = NormalEquations.empty(NUM)
    equations.add(rows, target)

    x = rng.normal(size=NUM)
    expected = ((rows @ x - target) ** 2).sum()
    assert equations.squared_error(x) == pytest.approx(expected)
    assert equations.rows == 30
    assert equations.square == pytest.approx((target**2).sum())


def test_targets_of_nan_are_left_out():
    rng = np.random.default_rng(3)
    rows, target = random_rows(rng, rng.normal(size=NUM), 10, 0.3)
    all_but_two = NormalEquations.empty(NUM)
    all_but_two.add(np.delete(rows, [2, 7], 0), np.delete(target, [2, 7]))

    target[[2, 7]] = np.nan
    with_holes = NormalEquations.empty(NUM)
    with_holes.add(rows, target)
    assert with_holes.rows == 8
    assert np.allclose(with_holes.matrix, all_but_two.matrix)
    assert np.allclose(with_holes.moment, all_but_two.moment)


def test_sums_and_differences_are_those_of_the_rows():
    folds, dense, _ = make_folds(3)
    first, second, third = (fold.all for fold in folds)
    rest = first + second + third - second

    rows = np.vstack([dense[0].rows, dense[2].rows])
    assert rest.rows == len(rows)
    assert np.allclose(rest.matrix, rows.T @ rows)


# --- the choice of the precision


def all_candidates(dense: list[DenseFold]) -> list[np.ndarray]:
    """The precisions that `choose_prior` tries, written down a second time, without the last."""
    rows = np.vstack([fold.rows for fold in dense])
    unit = (rows[:, WEIGHTS] ** 2).sum() / 7
    candidates = []
    for ratio in SHARED_RATIOS:
        for strength in STRENGTHS:
            candidates.append(unit * strength * (OWN + ratio * SHARED) + FIXED)
    return candidates


def left_out_solutions(dense: list[DenseFold], precision: np.ndarray) -> list[np.ndarray]:
    """Fits to the rows of all folds but one."""
    solutions = []
    for index in range(len(dense)):
        others = dense[:index] + dense[index + 1 :]
        rows = np.vstack([other.rows for other in others])
        targets = np.concatenate([other.targets for other in others])
        solutions.append(dense_ridge(rows, targets, precision))
    return solutions


def left_out_errors(dense: list[DenseFold], solutions: list[np.ndarray]) -> np.ndarray:
    """Sums (F, 2) of the absolute errors of the energies and of the forces of each fold."""
    errors = []
    for fold, x in zip(dense, solutions, strict=True):
        of_energies = np.abs(fold.energy_rows @ x - fold.energies).sum()
        of_forces = np.abs(fold.force_rows @ x - fold.forces).sum()
        errors.append([of_energies, of_forces])
    return np.array(errors)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_shares_are_those_of_the_draws_that_find_a_precision_best(noise):
    """The Bayesian bootstrap of the folds, by brute force and one draw after the other."""
    folds, dense, _ = make_folds(noise=noise, energies=3)
    choice = choose_prior(folds, SHARED, OWN, FIXED)

    candidates = all_candidates(dense)
    solutions = [left_out_solutions(dense, precision) for precision in candidates]
    solutions.append([np.zeros(NUM)] * len(folds))
    errors = [left_out_errors(dense, one) for one in solutions]
    numbers = np.array([[len(fold.energies), len(fold.forces)] for fold in dense])
    least = np.array([LEAST_ERROR["energy"], LEAST_ERROR["forces"]])

    votes = np.zeros(len(candidates) + 1)
    for weight in np.random.default_rng(0).dirichlet(np.ones(len(folds)), DRAWS):
        means = np.array([weight @ one / (weight @ numbers) for one in errors])
        scores = np.log(means + least).sum(1)
        # energies must not be worse than without any change
        scores[means[:, 0] > means[-1, 0]] = np.inf
        votes[scores.argmin()] += 1 / DRAWS

    elected = np.flatnonzero(votes[:-1])
    assert np.allclose(choice.mixture.shares, votes[elected])
    assert np.allclose(choice.mixture.precisions, [candidates[k] for k in elected], rtol=1e-9)
    # otherwise there was nothing to choose
    assert 1 < len(elected) < len(candidates)


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_errors_are_those_of_fits_without_each_fold(noise):
    folds, dense, _ = make_folds(noise=noise)
    choice = choose_prior(folds, SHARED, OWN, FIXED)

    mean = [np.zeros(NUM)] * len(folds)
    for precision, share in zip(choice.mixture.precisions, choice.mixture.shares, strict=True):
        own = left_out_solutions(dense, precision)
        mean = [before + share * more for before, more in zip(mean, own, strict=True)]

    left = np.concatenate(
        [fold.force_rows @ x - fold.forces for fold, x in zip(dense, mean, strict=True)]
    )
    forces = np.concatenate([fold.forces for fold in dense])
    assert choice.error_after == pytest.approx(np.sqrt((left**2).mean()), rel=1e-6)
    assert choice.error_before == pytest.approx(np.sqrt((forces**2).mean()))
    found = choice.errors["forces"]
    assert found.errors.sum() / found.weights.sum() == pytest.approx(np.abs(left).mean(), rel=1e-6)


def test_exact_labels_are_followed_and_empty_ones_are_not():
    """All of the change when labels determine everything; little when they are only noise."""
    exact, _, truth = make_folds(noise=1e-6)
    choice = choose_prior(exact, SHARED, OWN, 1e-9 * FIXED)
    total = NormalEquations.total(fold.all for fold in exact)
    assert choice.error_after < 1e-4 < choice.error_before
    assert np.allclose(choice.mixture.solve(total), truth, atol=1e-4)

    empty, _, _ = make_folds(noise=1.0, forces=400, truth=np.zeros(NUM))
    choice = choose_prior(empty, SHARED, OWN, FIXED)
    total = NormalEquations.total(fold.all for fold in empty)
    assert choice.error_after < 1.01 * choice.error_before
    change = np.abs(choice.mixture.solve(total)[WEIGHTS]).max()
    free_change = np.abs(total.solve(FIXED)[WEIGHTS]).max()
    assert change < 0.8 * free_change


def test_energies_are_scored_alone_where_there_are_no_forces():
    folds, _, _ = make_folds(forces=0, energies=6)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert set(choice.errors) == set(choice.held_out) == {"energy"}
    assert choice.error_after < choice.error_before


def test_energies_are_not_given_up_for_forces():
    """Energies are right from the start, and forces want a change that would spoil them."""
    rng = np.random.default_rng(5)
    folds = []
    for _ in range(6):
        energy_rows = rng.normal(size=(3, NUM))
        force_rows = rng.normal(size=(12, NUM))
        force_rows[:, -1] = 0.0
        forces = force_rows @ np.ones(NUM)
        folds.append(fold_of((energy_rows, np.zeros(3)), (force_rows, forces)))
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert choice.mixture.shares.sum() == 0
    assert not choice.mixture.solve(NormalEquations.total(fold.all for fold in folds)).any()


def test_what_is_fixed_is_part_of_every_precision():
    folds, _, _ = make_folds()
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    for precision in choice.mixture.precisions:
        shared = precision[:4]
        own = precision[4:7]
        assert precision[7] == 0.5
        assert len(set(shared)) == len(set(own)) == 1

        ratio = shared[0] / own[0]
        assert np.isclose(SHARED_RATIOS, ratio).any()


def test_one_fold_alone_changes_nothing():
    """Nothing can be concluded about structures left out, so there is no reason to move."""
    folds, _, _ = make_folds(1)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert choice.error_after == pytest.approx(choice.error_before)


def test_rows_are_kept_in_the_units_of_the_labels():
    """Equations are over the noise; what fits are judged by is not."""
    rng = np.random.default_rng(6)
    rows, errors = random_rows(rng, rng.normal(size=NUM), 20, 0.3)
    noise = rng.uniform(0.1, 2.0, 20)
    weights = rng.uniform(0.0, 3.0, 20)
    root = np.sqrt(weights)
    nothing = (np.empty((0, NUM)), np.empty(0))
    batch = DesignRows(
        rows={
            "energy": (rows * (root / noise)[:, None], errors * root / noise),
            "forces": nothing,
            "stress": nothing,
        },
        noise={},
        units={"energy": noise * root, "forces": np.empty(0), "stress": np.empty(0)},
        weights={"energy": weights, "forces": np.empty(0), "stress": np.empty(0)},
    )
    fold = Fold.empty(NUM)
    fold.add(batch)
    solutions = rng.normal(size=(3, NUM))
    expected = [weights @ np.abs(errors - rows @ x) for x in solutions]
    assert fold.judging["energy"].absolute_error(solutions) == pytest.approx(expected)
    divided = fold.divided_by_noise({"energy": 0.2, "forces": 1.0, "stress": 1.0})
    assert divided.judging["energy"].absolute_error(solutions) == pytest.approx(expected)

    some = Fold.empty(NUM)
    some.add(batch, {"energy": 0.5, "forces": 1.0, "stress": 1.0})
    assert 0 < len(some.judging["energy"].targets) < 20
    assert some.equations["energy"].rows == 20


# --- the mixture


def test_mean_and_covariance_of_a_mixture_are_those_of_its_samples():
    """By drawing a posterior, then a solution of it."""
    folds, _, _ = make_folds()
    total = NormalEquations.total(fold.all for fold in folds)
    precisions = np.array([pattern(shared=1, own=1, fixed=1), pattern(shared=30, own=9, fixed=1)])
    mixture = Mixture(precisions, np.array([0.5, 0.3]), 1e20 * np.ones(NUM))

    rng = np.random.default_rng(0)
    samples = []
    for precision, number in zip(precisions, (50_000, 30_000), strict=True):
        covariance = np.linalg.inv(total.matrix + np.diag(precision))
        mean = covariance @ total.moment
        samples.append(rng.multivariate_normal(mean, covariance, number))
    samples.append(np.zeros((20_000, NUM)))
    drawn = np.concatenate(samples)
    assert mixture.solve(total) == pytest.approx(drawn.mean(0), abs=0.01)
    scale = np.abs(np.cov(drawn.T)).max()
    assert mixture.covariance(total) == pytest.approx(np.cov(drawn.T), abs=0.03 * scale)


def test_more_data_are_more_certain_under_the_same_priors():
    """Of one precision in every direction; which priors are taken, more data may change."""
    folds, _, _ = make_folds()
    few = NormalEquations.total(fold.all for fold in folds[:2])
    many = NormalEquations.total(fold.all for fold in folds)
    precision = pattern(shared=1.0, own=1.0, fixed=1.0)
    mixture = Mixture(precision[None], np.ones(1), precision)
    shrinkage = mixture.covariance(few) - mixture.covariance(many)
    assert np.linalg.eigvalsh(shrinkage).min() > 0


# --- precisions below the rounding of the matrix


def one_ratio(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrix and moment of cells of A B C3 with noisy energies (eV), and the precision of E0."""
    cells = np.outer([1, 2, 4, 8] * 20, [1, 1, 3])
    energies = cells @ [-3.0, -8.0, -5.0]
    rows = cells / noise
    precision = np.full(3, 1e-8)
    return rows.T @ rows, rows.T @ (energies / noise), precision


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6, 1e-9])
def test_ratio_that_never_changes_moves_only_what_energies_tell(noise):
    """The least change: E0 in proportion to the ratio. The matrix has rank one; LU fails on it."""
    matrix, moment, precision = one_ratio(noise)
    # E0 = c (1, 1, 3) with E = 11 c for a cell whose energy is -3 - 8 - 15 = -26 eV
    least_change = np.array([1, 1, 3]) * (-26.0 / 11)
    assert solve_ridge(matrix, precision, moment) == pytest.approx(least_change, rel=1e-3)

    covariance = posterior_covariance(matrix, precision)
    undetermined = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    variance = undetermined @ covariance @ undetermined
    assert variance == pytest.approx(1e8, rel=0.02)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12 * 1e8


def test_well_posed_systems_are_solved_and_inverted_as_by_numpy():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(40, 12)) * np.logspace(3, -3, 12)
    matrix = rows.T @ rows
    precision = np.logspace(-8, 20, 12)
    moment = rows.T @ rng.normal(size=40)

    whole = matrix + np.diag(precision)
    expected = np.linalg.solve(whole, moment)
    assert solve_ridge(matrix, precision, moment) == pytest.approx(expected, rel=1e-8)
    inverse = posterior_covariance(matrix, precision)
    assert whole @ inverse == pytest.approx(np.eye(12), abs=1e-6)
