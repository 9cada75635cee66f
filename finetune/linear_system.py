"""Streamed normal equations of a whitened linear problem, in folds, and the choice of the pull by cross-validation.

A fold holds whole structures. Generalised cross-validation takes the force components of one structure for
independent measurements and was measured to overfit here (docs/decisions/0004); leaving structures out is exact and
costs only solves, because the equations of all folds but one are a difference of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


PULLS = np.logspace(-8, 4, 25)  # scanned strengths, in units of the mean diagonal of the matrix
SHARED_PULLS = (1.0, 10.0, 1e3, 1e12)  # pull on weights that all elements share over that on an element's own
UNCHANGED = 1e20  # strongest of all: leaves the weights as they are
VETO = 2.0  # standard errors by which energies may get worse before a pull is refused


@dataclass
class NormalEquations:
    """A^T A, A^T y, y^T y and the number of rows; sums, so they add up."""

    matrix: np.ndarray  # (P, P)
    moment: np.ndarray  # (P,)
    square: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, size: int) -> NormalEquations:
        """No rows yet, for `size` parameters."""
        return cls(np.zeros((size, size)), np.zeros(size))

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.matrix + other.matrix, self.moment + other.moment, self.square + other.square, self.rows + other.rows
        )

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.matrix - other.matrix, self.moment - other.moment, self.square - other.square, self.rows - other.rows
        )

    def add(self, rows: np.ndarray, target: np.ndarray) -> None:
        """Add rows (R, P) with targets (R,), both already divided by the noise; NaN targets are left out."""
        labelled = np.isfinite(target)
        rows, target = rows[labelled], target[labelled]
        self.matrix += rows.T @ rows
        self.moment += rows.T @ target
        self.square += float(target @ target)
        self.rows += len(target)

    def solve(self, pull: np.ndarray) -> np.ndarray:
        """Minimiser of |A x - y|^2 + sum pull x^2; pull (P,)."""
        return np.linalg.solve(self.matrix + np.diag(pull), self.moment)

    def squared_error(self, x: np.ndarray) -> float:
        """|A x - y|^2."""
        return float(self.square - 2 * x @ self.moment + x @ self.matrix @ x)


@dataclass
class Fold:
    """Equations of some structures: energies, and forces apart because the score looks at them alone."""

    energy: NormalEquations
    forces: NormalEquations

    @classmethod
    def empty(cls, size: int) -> Fold:
        """No rows yet, for `size` parameters."""
        return cls(NormalEquations.empty(size), NormalEquations.empty(size))

    @property
    def all(self) -> NormalEquations:
        """Energies and forces together."""
        return self.energy + self.forces


@dataclass(frozen=True)
class PullChoice:
    """The chosen pull (P,), and the cross-validated RMS error with no change and with it, in units of the noise."""

    pull: np.ndarray
    error_before: float
    error_after: float


def choose_pull(folds: list[Fold], shared: np.ndarray, own: np.ndarray, fixed: np.ndarray) -> PullChoice:
    """The strongest pull toward the pretrained weights that is as good as any on structures left out.

    `shared` and `own` (P,) are 1 on the weights that all elements use and on those of single elements; `fixed`
    (P,) is added as it is. As good as any: within one standard error of the least force error, over folds, of the
    paired difference to it (the one-standard-error rule of Breiman et al. 1984), with an energy error not above
    that of unchanged weights by more than two. Without forces, energies alone are scored. Energies
    do not rank the pulls, because they also test the E0 of elements that no other structure may hold.
    """
    total = sum((fold.all for fold in folds[1:]), folds[0].all)
    weights = shared + own > 0
    unit = np.trace(total.matrix[weights][:, weights]) / max(1, weights.sum()) or 1.0
    ratios = SHARED_PULLS if own.any() else SHARED_PULLS[:1]
    pulls = [unit * strength * (own + ratio * shared) + fixed for ratio in ratios for strength in PULLS]
    pulls.append(UNCHANGED * unit * (own + shared) + fixed)
    solutions = [[(total - fold.all).solve(pull) for fold in folds] for pull in pulls]
    energy, forces = (
        np.array([[part.squared_error(x) for part, x in zip(parts, row, strict=True)] for row in solutions])
        for parts in ([fold.energy for fold in folds], [fold.forces for fold in folds])
    )  # (pulls, folds)
    use_forces = any(fold.forces.rows for fold in folds)
    errors = forces if use_forces else energy
    harmless = _excess(energy, energy[-1], VETO) <= 0  # the last pull is always harmless
    least = errors[harmless][np.argmin(errors[harmless].sum(1))]
    good = np.flatnonzero(harmless & (_excess(errors, least) <= 0))
    best = max(good, key=lambda k: pulls[k][weights].sum())
    rows = max(1, sum((fold.forces if use_forces else fold.energy).rows for fold in folds))
    before, after = (float(np.sqrt(max(0.0, errors[k].sum()) / rows)) for k in (-1, best))
    return PullChoice(pulls[best], before, after)


def _excess(errors: np.ndarray, reference: np.ndarray, standard_errors: float = 1.0) -> np.ndarray:
    """How far the sums over folds (pulls,) lie above that of `reference` (folds,), less so many standard errors."""
    difference = errors - reference
    return difference.sum(1) - standard_errors * difference.std(axis=1) * np.sqrt(errors.shape[1])
