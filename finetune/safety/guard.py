"""The guard: whatever is done after step 0 is kept only if it is better on structures that were held out."""

from __future__ import annotations

import math

from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from .step0 import Step, step, worse_labels


SHARES = (1.0, 0.7, 0.4, 0.2, 0.1)  # of the way to what was fitted


class HeldOut:
    """Scores a potential on held-out structures; made at step 0, which `step0` is the score of.

    The score is the sum of energy and force error, each over that of step 0, and infinite when one of them is above
    it. That of step 0 is its error on the held-out structures, or on all where that is larger: one or two held-out
    structures that happen to fit must not forbid everything.
    """

    def __init__(
        self, potential: Potential, train: list[Structure], valid: list[Structure]
    ) -> None:
        self.valid = valid
        own, pooled = step("held out", potential, valid), step("all", potential, [*train, *valid])
        self.bound = Step(
            "bound",
            _larger(own.energy_mae_per_atom, pooled.energy_mae_per_atom),
            _larger(own.force_mae, pooled.force_mae),
        )
        self.step0 = self.score(potential)

    def score(self, potential: Potential) -> float:
        """The score of the potential as it stands."""
        above, total = self.rank(potential)
        return math.inf if above else total

    def rank(self, potential: Potential) -> tuple[bool, float]:
        """Whether an error is above that of step 0, and the sum: what is less comes nearer to a good one."""
        now = step("now", potential, self.valid)
        pairs = (
            (now.energy_mae_per_atom, self.bound.energy_mae_per_atom),
            (now.force_mae, self.bound.force_mae),
        )
        total = sum(
            new / max(old, 1e-12) for new, old in pairs if new is not None and old is not None
        )
        return bool(worse_labels(now, self.bound)) or not math.isfinite(total), total


def _larger(own: float | None, pooled: float | None) -> float | None:
    """None where the held-out structures have no such label."""
    return None if own is None else max(own, pooled if pooled is not None else own)
