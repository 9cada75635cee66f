"""The guard: everything after step 0 is kept only if it is better on held-out structures."""

from __future__ import annotations

import math

import numpy as np

from ...core.labels import LABELS
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential
from ..target import different
from .step0 import Step, step, worse_labels


# Shares of the way to the fitted weights that are tried, from all of it down.
SHARES = (1.0, 0.7, 0.4, 0.2, 0.1)

# Errors below these, in eV/atom and eV/A, all count as equally small. In float32, every model
# predicts forces that vanish by symmetry as some 1e-6 eV/A, and a rise of that says nothing.
LEAST_BOUND = {"energy": 1e-5, "forces": 1e-4}


class HeldOut:
    """Scores a potential on held-out structures. It is made at step 0, whose errors are the bounds.

    The score is the sum of the errors of all guarded labels, each over its bound. It is infinite if
    one of them is above its bound.
    """

    def __init__(self, potential: Potential, valid: list[Structure]) -> None:
        self.valid = valid
        self.num_different = len(different(valid))
        """Number of held-out structures without copies and near copies, which say nothing new."""
        self.bound = _with_floor(step("bound", potential, valid))
        self.step0 = self.score(potential)
        """The score at step 0."""

    def score(self, potential: Potential) -> float:
        """The score of the potential as it is now; lower is better."""
        above, total = self.rank(potential)
        return math.inf if above else total

    def rank(self, potential: Potential) -> tuple[bool, float]:
        """Whether an error is above its bound, and the sum of errors over bounds.

        The tuple also orders potentials that are all above a bound: the lowest is the nearest to
        being allowed.
        """
        now = step("now", potential, self.valid)
        total = 0.0
        for name, bound in self.bound.mae.items():
            error = now.mae[name]
            if error is not None and bound is not None:
                total += error / bound
        above = bool(worse_labels(now, self.bound)) or not math.isfinite(total)
        return above, total

    def shares(self, potential: Potential) -> np.ndarray:
        """(S,) what each held-out structure adds to the score; together they are the score.

        A structure adds nothing for a label that it lacks.
        """
        predictions = predict(potential, self.valid)
        shares = np.zeros(len(self.valid))
        for name, bound in self.bound.mae.items():
            if bound is None:
                continue
            pairs = predictions.comparable[name]
            labelled = np.isfinite(pairs[..., 0])
            error = np.where(labelled, np.abs(pairs[..., 1] - pairs[..., 0]), 0.0)
            # labels of atoms are summed over the atoms of a structure
            if LABELS[name].per == "atom":
                structure_of_row = predictions.structure_index
            else:
                structure_of_row = np.arange(len(self.valid))
            error_of_row = error.reshape(len(error), -1).sum(1)
            total = np.bincount(
                structure_of_row, weights=error_of_row, minlength=len(self.valid)
            )  # (S,)
            shares += total / labelled.sum() / bound
        return shares


def _with_floor(errors: Step) -> Step:
    """Errors as bounds: one that is zero up to rounding is raised to LEAST_BOUND."""
    mae = {
        name: None if value is None else max(value, LEAST_BOUND[name])
        for name, value in errors.mae.items()
    }
    return Step(errors.name, mae)
