"""Normal equations against dense least squares; cross-validation against refits without a fold."""

from __future__ import annotations

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


NUM = 8  # unknowns: 4 shared, 3 own, 1 fixed


def pattern(*, shared: float = 0.0, own: float = 0.0, fixed: float = 0.0) -> np.ndarray:
    return np.repeat([shared, own, fixed], [4, 3, 1])


SHARED, OWN, FIXED = pattern(shared=1.0), pattern(own=1.0), pattern(fixed=0.5)


def random_rows(
    rng: np.random.Generator, truth: np.ndarray, num: int, noise: float, *, forces: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    rows = rng.normal(size=(num, len(truth))) * np.logspace(0, -1, len(truth))
    if forces:
        rows[:, -1] = 0.0  # what is fixed is E0, which exerts none
    return rows, rows @ truth + noise * rng.normal(size=num)


def make_folds(
    num_folds: int = 5, noise: float = 0.1, forces: int = 6, energies: int = 2, truth=None
) -> tuple:
    """Folds, and the dense rows and targets of each: energy, then forces."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=NUM) if truth is None else truth
    folds, dense = [], []
    for _ in range(num_folds):
        fold = Fold.empty(NUM)
        energy = random_rows(rng, truth, energies, noise)
        force = random_rows(rng, truth, forces, noise, forces=True)
        fold.equations["energy"].add(*energy)
        fold.equations["forces"].add(*force)
        folds.append(fold)
        dense.append((*energy, *force))
    return folds, dense, truth


def dense_ridge(rows: np.ndarray, target: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """By the singular values of the augmented matrix, not by normal equations."""
    rows = np.vstack([rows, np.diag(np.sqrt(precision))])
    return np.linalg.lstsq(rows, np.concatenate([target, np.zeros(len(precision))]), rcond=None)[0]


# --- equations


def test_solution_equals_dense_least_squares():
    rng = np.random.default_rng(1)
    rows, target = random_rows(rng, rng.normal(size=NUM), 30, 0.3)
    equations = NormalEquations.empty(NUM)
    for part in np.split(np.arange(30), [7, 20]):  # streamed
        equations.add(rows[part], target[part])
    for precision in (np.zeros(NUM), rng.uniform(0.1, 10, NUM)):
        assert np.allclose(
            equations.solve(precision), dense_ridge(rows, target, precision), rtol=1e-9, atol=1e-12
        )


def test_squared_error_equals_that_of_the_rows():
    rng = np.random.default_rng(2)
    rows, target = random_rows(rng, rng.normal(size=NUM), 30, 0.3)
    equations = NormalEquations.empty(NUM)
    equations.add(rows, target)
    x = rng.normal(size=NUM)
    assert equations.squared_error(x) == pytest.approx(((rows @ x - target) ** 2).sum())
    assert equations.rows == 30 and equations.square == pytest.approx((target**2).sum())


def test_targets_of_nan_are_left_out():
    rng = np.random.default_rng(3)
    rows, target = random_rows(rng, rng.normal(size=NUM), 10, 0.3)
    all_but_two, holes = NormalEquations.empty(NUM), NormalEquations.empty(NUM)
    all_but_two.add(np.delete(rows, [2, 7], 0), np.delete(target, [2, 7]))
    target[[2, 7]] = np.nan
    holes.add(rows, target)
    assert holes.rows == 8
    assert np.allclose(holes.matrix, all_but_two.matrix) and np.allclose(
        holes.moment, all_but_two.moment
    )


def test_sums_and_differences_are_those_of_the_rows():
    folds, dense, _ = make_folds(3)
    rest = folds[0].all + folds[1].all + folds[2].all - folds[1].all
    rows = np.vstack([part for k in (0, 2) for part in dense[k][::2]])
    assert rest.rows == len(rows)
    assert np.allclose(rest.matrix, rows.T @ rows)


# --- the choice of the precision


def left_out_errors(dense: list, precision: np.ndarray, *, forces: bool = True) -> np.ndarray:
    """Sum of squares over each fold's forces (or energies) when the fit has not seen that fold."""
    errors = []
    for k, fold in enumerate(dense):
        others = dense[:k] + dense[k + 1 :]
        rows = np.vstack([part for other in others for part in other[::2]])
        target = np.concatenate([part for other in others for part in other[1::2]])
        x = dense_ridge(rows, target, precision)
        rows, target = fold[2:] if forces else fold[:2]
        errors.append(((rows @ x - target) ** 2).sum())
    return np.array(errors)


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_cross_validated_error_equals_refitting_without_each_fold(noise):
    folds, dense, _ = make_folds(noise=noise)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    num = sum(len(d[3]) for d in dense)
    assert choice.error_after == pytest.approx(
        np.sqrt(left_out_errors(dense, choice.precision).sum() / num), rel=1e-6
    )
    assert choice.error_before == pytest.approx(
        np.sqrt(sum((d[3] ** 2).sum() for d in dense) / num)
    )


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_choice_is_the_strongest_pull_within_one_standard_error_of_the_best(noise):
    """Breiman, Friedman, Olshen and Stone 1984, by brute force."""
    folds, dense, _ = make_folds(noise=noise)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    rows = np.vstack([part for d in dense for part in d[::2]])
    unit = (rows[:, :7] ** 2).sum() / 7
    scanned = [
        unit * s * (OWN + ratio * SHARED) + FIXED for ratio in SHARED_RATIOS for s in STRENGTHS
    ]
    scanned.append(unit * UNCHANGED * (OWN + SHARED) + FIXED)
    errors = np.array([left_out_errors(dense, precision) for precision in scanned])
    excess = errors - errors[errors.sum(1).argmin()]
    width = student.ppf(0.8413, len(folds) - 1)  # of a standard error from so few folds
    as_good = [
        k
        for k, e in enumerate(excess)
        if e.sum() <= width * len(e) * e.std(ddof=1) / np.sqrt(len(e))
    ]
    strongest = max(as_good, key=lambda k: scanned[k].sum())
    assert np.allclose(choice.precision, scanned[strongest], rtol=1e-9)
    assert len(as_good) < 0.9 * len(scanned)  # there was something to choose


def test_exact_labels_are_followed_and_empty_ones_are_not():
    """Little precision when labels determine everything; much when they are only noise."""
    exact, _, truth = make_folds(noise=1e-6)
    choice = choose_prior(exact, SHARED, OWN, 1e-9 * FIXED)
    assert choice.error_after < 1e-5 < choice.error_before
    assert np.allclose(solution(exact, choice.precision), truth, atol=1e-5)
    empty, _, _ = make_folds(noise=1.0, forces=400, truth=np.zeros(NUM))
    choice = choose_prior(empty, SHARED, OWN, FIXED)
    assert choice.error_after <= choice.error_before
    assert (
        np.abs(solution(empty, choice.precision)[:7]).max()
        < 0.5 * np.abs(solution(empty, FIXED)[:7]).max()
    )


def solution(folds: list[Fold], precision: np.ndarray) -> np.ndarray:
    return NormalEquations.total(fold.all for fold in folds).solve(precision)


def test_forces_are_scored_when_there_are_any_else_energies():
    folds, dense, _ = make_folds(forces=0, energies=6)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    num = sum(len(d[1]) for d in dense)
    assert choice.error_after == pytest.approx(
        np.sqrt(left_out_errors(dense, choice.precision, forces=False).sum() / num), rel=1e-6
    )


def test_what_is_fixed_stays_as_it_is():
    folds, _, _ = make_folds()
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert choice.precision[7] == 0.5
    assert len(set(choice.precision[:4])) == len(set(choice.precision[4:7])) == 1
    ratios = np.array(SHARED_RATIOS) * choice.precision[4] / choice.precision[0]
    assert np.isclose(ratios, 1).any()


def test_one_fold_alone_changes_nothing():
    """Nothing can be said of structures left out, so there is no reason to move."""
    folds, _, _ = make_folds(1)
    choice = choose_prior(folds, SHARED, OWN, FIXED)
    assert choice.error_after == pytest.approx(choice.error_before)


# --- precisions below the rounding of the matrix


def one_ratio(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrix and moment of cells of A B C3 with noisy energies (eV), and the precision of E0."""
    cells = np.outer([1, 2, 4, 8] * 20, [1, 1, 3])
    rows = cells / noise
    return rows.T @ rows, rows.T @ (cells @ [-3.0, -8.0, -5.0] / noise), np.full(3, 1e-8)


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6, 1e-9])
def test_ratio_that_never_changes_moves_only_what_energies_tell(noise):
    """The least change: E0 in proportion to the ratio. The matrix has rank one; LU fails on it."""
    matrix, moment, precision = one_ratio(noise)
    least = np.array([1, 1, 3]) * (-26.0 / 11)
    assert solve_ridge(matrix, precision, moment) == pytest.approx(least, rel=1e-3)
    covariance = posterior_covariance(matrix, precision)
    untold = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    assert untold @ covariance @ untold == pytest.approx(1e8, rel=0.02)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12 * 1e8


def test_well_posed_systems_are_solved_and_inverted_as_by_numpy():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(40, 12)) * np.logspace(3, -3, 12)
    matrix, precision = rows.T @ rows, np.logspace(-8, 20, 12)
    moment = rows.T @ rng.normal(size=40)
    whole = matrix + np.diag(precision)
    assert solve_ridge(matrix, precision, moment) == pytest.approx(
        np.linalg.solve(whole, moment), rel=1e-8
    )
    assert whole @ posterior_covariance(matrix, precision) == pytest.approx(np.eye(12), abs=1e-6)
