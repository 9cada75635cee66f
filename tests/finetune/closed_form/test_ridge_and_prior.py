"""Normal equations against dense least squares; cross-validation against refits without a fold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import t as student

from evenfield.finetune.closed_form.prior import (
    SHARED_RATIOS,
    STRENGTHS,
    UNCHANGED,
    Fold,
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

        fold = Fold.empty(NUM)
        fold.equations["energy"].add(*energy)
        fold.equations["forces"].add(*force)
        folds.append(fold)
        dense.append(DenseFold(*energy, *force))
    return folds, dense, truth


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


def left_out_errors(
    dense: list[DenseFold], precision: np.ndarray, *, forces: bool = True
) -> np.ndarray:
    """Sum of squares over each fold's forces (or energies) when the fit has not seen that fold."""
    errors = []
    for index, fold in enumerate(dense):
        others = dense[:index] + dense[index + 1 :]
        rows = np.vstack([other.rows for other in others])
        targets = np.concatenate([other.targets for other in others])
        x = dense_ridge(rows, targets, precision)

        if forces:
            error = fold.force_rows @ x - fold.forces
        else:
            error = fold.energy_rows @ x - fold.energies
        errors.append((error**2).sum())
    return np.array(errors)


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_cross_validated_error_equals_refitting_without_each_fold(noise):
    folds, dense, _ = make_folds(noise=noise)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    num_forces = sum(len(fold.forces) for fold in dense)

    after = left_out_errors(dense, choice.precision).sum()
    assert choice.error_after == pytest.approx(np.sqrt(after / num_forces), rel=1e-6)
    before = sum((fold.forces**2).sum() for fold in dense)
    assert choice.error_before == pytest.approx(np.sqrt(before / num_forces))


def all_candidates(dense: list[DenseFold]) -> list[np.ndarray]:
    """The precisions that `choose_prior` tries, written down a second time."""
    rows = np.vstack([fold.rows for fold in dense])
    unit = (rows[:, WEIGHTS] ** 2).sum() / 7
    candidates = []
    for ratio in SHARED_RATIOS:
        for strength in STRENGTHS:
            candidates.append(unit * strength * (OWN + ratio * SHARED) + FIXED)
    candidates.append(unit * UNCHANGED * (OWN + SHARED) + FIXED)
    return candidates


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_choice_is_the_strongest_pull_within_one_standard_error_of_the_best(noise):
    """Breiman, Friedman, Olshen and Stone 1984, by brute force."""
    folds, dense, _ = make_folds(noise=noise)
    choice = choose_prior(folds, SHARED, OWN, FIXED)

    candidates = all_candidates(dense)
    errors = np.array([left_out_errors(dense, precision) for precision in candidates])
    best = errors.sum(1).argmin()
    excess = errors - errors[best]
    # 0.8413 is the normal distribution below one standard error
    quantile = student.ppf(0.8413, len(folds) - 1)
    as_good = []
    for index, difference in enumerate(excess):
        standard_error = difference.std(ddof=1) / np.sqrt(len(difference))
        if difference.sum() <= quantile * len(difference) * standard_error:
            as_good.append(index)

    strongest = max(as_good, key=lambda index: candidates[index].sum())
    assert np.allclose(choice.precision, candidates[strongest], rtol=1e-9)
    # otherwise there was nothing to choose
    assert len(as_good) < 0.9 * len(candidates)


def solution(folds: list[Fold], precision: np.ndarray) -> np.ndarray:
    total = NormalEquations.total(fold.all for fold in folds)
    return total.solve(precision)


def test_exact_labels_are_followed_and_empty_ones_are_not():
    """Little precision when labels determine everything; much when they are only noise."""
    exact, _, truth = make_folds(noise=1e-6)
    choice = choose_prior(exact, SHARED, OWN, 1e-9 * FIXED)
    assert choice.error_after < 1e-5 < choice.error_before
    assert np.allclose(solution(exact, choice.precision), truth, atol=1e-5)

    empty, _, _ = make_folds(noise=1.0, forces=400, truth=np.zeros(NUM))
    choice = choose_prior(empty, SHARED, OWN, FIXED)
    assert choice.error_after <= choice.error_before
    chosen_change = np.abs(solution(empty, choice.precision)[WEIGHTS]).max()
    free_change = np.abs(solution(empty, FIXED)[WEIGHTS]).max()
    assert chosen_change < 0.5 * free_change


def test_forces_are_scored_when_there_are_any_else_energies():
    folds, dense, _ = make_folds(forces=0, energies=6)
    choice = choose_prior(folds, SHARED, OWN, FIXED)

    num_energies = sum(len(fold.energies) for fold in dense)
    after = left_out_errors(dense, choice.precision, forces=False).sum()
    assert choice.error_after == pytest.approx(np.sqrt(after / num_energies), rel=1e-6)


def test_what_is_fixed_stays_as_it_is():
    folds, _, _ = make_folds()
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    shared = choice.precision[:4]
    own = choice.precision[4:7]
    assert choice.precision[7] == 0.5
    assert len(set(shared)) == len(set(own)) == 1

    ratio = shared[0] / own[0]
    assert np.isclose(SHARED_RATIOS, ratio).any()


def test_one_fold_alone_changes_nothing():
    """Nothing can be concluded about structures left out, so there is no reason to move."""
    folds, _, _ = make_folds(1)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert choice.error_after == pytest.approx(choice.error_before)


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
