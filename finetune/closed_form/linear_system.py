"""Streamed normal equations of a whitened linear problem, in folds, and the choice of the pull by cross-validation.

A fold holds whole structures. Generalised cross-validation takes the force components of one structure for
independent measurements and was measured to overfit here (docs/decisions/0004); leaving structures out is exact and
costs only solves, because the equations of all folds but one are a difference of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.stats import t as student


PULLS = np.logspace(-8, 4, 25)  # scanned strengths, in units of the mean diagonal of the matrix
SHARED_PULLS = (
    1.0,
    10.0,
    1e3,
    1e12,
)  # pull on weights that all elements share over that on an element's own
UNCHANGED = 1e20  # strongest of all: leaves the weights as they are
VETO = 2.0  # standard errors by which energies or stress may get worse before a pull is refused
KINDS = ("energy", "forces", "stress")
ONE_STANDARD_ERROR = (
    0.8413  # of a normal distribution; of few folds Student's t says how much that is
)


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
            self.matrix + other.matrix,
            self.moment + other.moment,
            self.square + other.square,
            self.rows + other.rows,
        )

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.matrix - other.matrix,
            self.moment - other.moment,
            self.square - other.square,
            self.rows - other.rows,
        )

    def over(self, noise: float) -> NormalEquations:
        """The same rows and targets divided by `noise`."""
        square = noise**2
        return NormalEquations(
            self.matrix / square, self.moment / square, self.square / square, self.rows
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
        return solve_pulled(self.matrix, pull, self.moment)

    def squared_error(self, x: np.ndarray) -> float:
        """|A x - y|^2."""
        return float(self.square - 2 * x @ self.moment + x @ self.matrix @ x)


def solve_pulled(matrix: np.ndarray, pull: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """x of (matrix + diag(pull)) x = moment, also where the pull is lost in the rounding of the matrix.

    It is in directions such as the E0 of structures that all have one ratio of elements: labels do not tell them, and
    a weak pull beside many precise energies is below the last digit.
    """
    scaled, scale = _scaled(matrix, pull)
    try:
        factor = cho_factor(scaled, lower=True, check_finite=False)
        if np.diagonal(factor[0]).min() ** 2 > _rounding(scaled):
            return scale * cho_solve(factor, scale * moment, check_finite=False)
    except LinAlgError:
        pass
    told, values, untold = _directions(scaled, scale)
    x = told @ (told.T @ moment / values)
    weight = np.sqrt(pull)[:, None]  # what no label tells is as the pull would have it
    return x - untold @ np.linalg.lstsq(weight * untold, weight[:, 0] * x, rcond=None)[0]


def invert_pulled(matrix: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """(matrix + diag(pull))^-1, where directions that the matrix's rounding hides have the width of their pull."""
    told, values, untold = _directions(*_scaled(matrix, pull))
    of_pull = untold @ np.linalg.inv(untold.T @ (pull[:, None] * untold)) @ untold.T
    return (told / values) @ told.T + of_pull


def _scaled(matrix: np.ndarray, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """matrix + diag(pull) with rows and columns scaled to a diagonal of ones, and the scale (P,)."""
    whole = matrix + np.diag(pull)
    diagonal = np.diagonal(whole)
    scale = np.where(diagonal > 0, diagonal, 1.0) ** -0.5
    return whole * np.outer(scale, scale), scale


def _directions(scaled: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions (P, A) above the rounding, their eigenvalues (A,), and the others (P, B), in the unscaled space."""
    values, vectors = np.linalg.eigh(scaled)
    sound = values > _rounding(scaled)
    vectors = scale[:, None] * vectors
    return vectors[:, sound], values[sound], vectors[:, ~sound]


def _rounding(scaled: np.ndarray) -> float:
    """Eigenvalues of a matrix with ones on the diagonal that may be rounding."""
    return 10 * len(scaled) * float(np.finfo(float).eps)


@dataclass
class Fold:
    """Equations of some structures, by kind of label: the score looks at one kind, each has a noise of its own."""

    energy: NormalEquations
    forces: NormalEquations
    stress: NormalEquations

    @classmethod
    def empty(cls, size: int) -> Fold:
        """No rows yet, for `size` parameters."""
        return cls(*(NormalEquations.empty(size) for _ in KINDS))

    @property
    def all(self) -> NormalEquations:
        """All kinds together."""
        return self.energy + self.forces + self.stress

    def over(self, noise: dict[str, float]) -> Fold:
        """Each kind divided by its noise."""
        return Fold(*(getattr(self, kind).over(noise[kind]) for kind in KINDS))


@dataclass(frozen=True)
class PullChoice:
    """The chosen pull (P,), and the cross-validated RMS error with no change and with it, in units of the noise.

    `held_out` has that error with the pull for each kind of label that there is.
    """

    pull: np.ndarray
    error_before: float
    error_after: float
    held_out: dict[str, float]


def choose_pull(
    folds: list[Fold], shared: np.ndarray, own: np.ndarray, fixed: np.ndarray
) -> PullChoice:
    """The strongest pull toward the pretrained weights that is as good as any on structures left out.

    `shared` and `own` (P,) are 1 on the weights that all elements use and on those of single elements; `fixed`
    (P,) is added as it is. As good as any: within one standard error of the least force error, over folds, of the
    paired difference to it (the one-standard-error rule of Breiman et al. 1984), with energy and stress errors not
    above those of unchanged weights by more than two. Without forces, energies alone are scored, then stress.
    Energies do not rank the pulls, because they also test the E0 of elements that no other structure may hold.
    """
    total = sum((fold.all for fold in folds[1:]), folds[0].all)
    weights = shared + own > 0
    unit = np.trace(total.matrix[weights][:, weights]) / max(1, weights.sum()) or 1.0
    ratios = SHARED_PULLS if own.any() else SHARED_PULLS[:1]
    pulls = [
        unit * strength * (own + ratio * shared) + fixed for ratio in ratios for strength in PULLS
    ]
    pulls.append(UNCHANGED * unit * (own + shared) + fixed)
    errors = _held_out_errors(folds, total, pulls)
    rows = {kind: sum(getattr(fold, kind).rows for fold in folds) for kind in KINDS}
    scored = next((kind for kind in ("forces", "energy", "stress") if rows[kind]), "forces")
    harmless = np.all(
        [_excess(errors[k], errors[k][-1], VETO) <= 0 for k in ("energy", "stress")], axis=0
    )
    score = errors[scored]
    least = score[harmless][np.argmin(score[harmless].sum(1))]  # the last pull is always harmless
    good = np.flatnonzero(harmless & (_excess(score, least) <= 0))
    best = max(good, key=lambda k: pulls[k][weights].sum())
    rms = {
        kind: np.sqrt(np.maximum(errors[kind].sum(1), 0.0) / max(1, rows[kind])) for kind in KINDS
    }
    held_out = {kind: float(rms[kind][best]) for kind in KINDS if rows[kind]}
    return PullChoice(pulls[best], float(rms[scored][-1]), float(rms[scored][best]), held_out)


def _held_out_errors(
    folds: list[Fold], total: NormalEquations, pulls: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Summed squared errors (pulls, folds) of each kind, of every fold by a fit to the others."""
    errors = {kind: np.empty((len(pulls), len(folds))) for kind in KINDS}
    for row, pull in enumerate(pulls):
        for column, fold in enumerate(folds):
            solution = (total - fold.all).solve(pull)
            for kind in KINDS:
                errors[kind][row, column] = getattr(fold, kind).squared_error(solution)
    return errors


def _excess(errors: np.ndarray, reference: np.ndarray, standard_errors: float = 1.0) -> np.ndarray:
    """How far the sums over folds (pulls,) lie above that of `reference` (folds,), less so many standard errors.

    With few folds a standard error is itself uncertain: Student's t makes it as wide as it has to be.
    """
    difference, num = errors - reference, errors.shape[1]
    if num < 2:
        return difference.sum(1)
    width = student.ppf(ONE_STANDARD_ERROR, num - 1) * difference.std(axis=1, ddof=1) * np.sqrt(num)
    return difference.sum(1) - standard_errors * width
