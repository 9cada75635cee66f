"""The guard: everything after step 0 is kept only if it is better on held-out structures."""

from __future__ import annotations

import math

from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ..target import alike
from .step0 import step, worse_labels


# Shares of the way to the fitted weights that are tried, from all of it down.
SHARES = (1.0, 0.7, 0.4, 0.2, 0.1)


class HeldOut:
    """Scores a potential on held-out structures. Made at step 0, whose errors are the bound.

    The score is the sum of the errors of all guarded labels, each over its error at step 0, and
    infinite when one of them is above that.
    """

    def __init__(self, potential: Potential, valid: list[Structure]) -> None:
        self.valid = valid
        self.num_different = len(alike(valid))
        """Held-out structures without their copies, which decide nothing more."""
        self.bound = step("bound", potential, valid)
        self.step0 = self.score(potential)
        """The score at step 0."""

    def score(self, potential: Potential) -> float:
        """The score of the potential as it is now; lower is better."""
        above, total = self.rank(potential)
        return math.inf if above else total

    def rank(self, potential: Potential) -> tuple[bool, float]:
        """Whether an error is above its bound, and the sum of errors over bounds.

        As a tuple it orders potentials that are all above a bound: the lowest is nearest to one
        that is allowed.
        """
        now = step("now", potential, self.valid)
        total = 0.0
        for name, bound in self.bound.mae.items():
            error = now.mae[name]
            if error is not None and bound is not None:
                # the floor keeps a perfect start from dividing by zero
                total += error / max(bound, 1e-12)
        above = bool(worse_labels(now, self.bound)) or not math.isfinite(total)
        return above, total
