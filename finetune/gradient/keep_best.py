"""Early stopping: which step of a training is kept, and when the training stops."""

from __future__ import annotations

import math

from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import (
    copied_weights,
    interpolated,
    put_weights,
    weights_aside,
)
from ...pretrain.callbacks.callback import Callback, Loop, StepReport
from ..safety.guard import SHARES, HeldOut
from .config import GradientConfig


# With fewer held-out structures, they do not choose a step, because an early one may fit them by
# chance (docs/decisions/0009).
FEWEST_TO_CHOOSE = 16


class KeepBest(Callback):
    """Scores the weights regularly, restores the best at the end, and stops a useless training.

    With fewer than FEWEST_TO_CHOOSE held-out structures, the last step is taken unless an error is
    above that of step 0 there. The training stops early if errors remain above those of step 0.

    If no step is better than the start, for example because one kind of error rises while another
    falls, weights between the start and the best step are tried (weight-space interpolation:
    Wortsman et al., arXiv:2109.01903).

    best_step: the step whose weights were kept, 0 for the start. share: how far the final weights
    are on the way from the start to that step. stopped: whether the training was stopped early.
    """

    def __init__(
        self, potential: Potential, held_out: HeldOut | None, config: GradientConfig
    ) -> None:
        self.potential = potential
        self.held_out = held_out
        self.config = config
        self.best_step = 0
        self.share = 1.0
        self.stopped = False
        self._evaluations_without_gain = 0
        if held_out:
            self._start = copied_weights(potential, trainable=True)
            self._start_score = held_out.score(potential)
            self._best = self._start
            # the worst possible rank, so that the first evaluation is better
            self._best_rank = (True, math.inf)

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        last = report.step == self.config.steps
        due = last or report.step % self.config.evaluate_every == 0
        if not self.held_out or not due:
            return

        rank = self.held_out.rank(self.potential)
        self.potential.train()  # scoring switched it to evaluation mode
        above_step0 = rank[0]
        better = rank < self._best_rank
        few = self.held_out.num_different < FEWEST_TO_CHOOSE

        if better or (few and last and not above_step0):
            self._best_rank = rank
            self._best = copied_weights(self.potential, trainable=True)
            self.best_step = report.step

        if not above_step0 and (better or few):
            self._evaluations_without_gain = 0
        elif 2 * report.step > self.config.steps:
            # not in the first half, where learning rates are high and errors fluctuate
            self._evaluations_without_gain += 1

        if self._evaluations_without_gain >= self.config.patience and not last:
            self.stopped = True
            loop.stop.by = "early stopping"

    def on_end(self, loop: Loop) -> None:
        if not self.held_out:
            return
        self.share = self._best_share(self.held_out)
        if self.share == 0.0:
            self.best_step = 0
        put_weights(self.potential, interpolated(self._start, self._best, self.share))

    def _best_share(self, held_out: HeldOut) -> float:
        """The first of SHARES of the way to the best step that beats the start; 0 if none does."""
        for share in SHARES:
            tried = interpolated(self._start, self._best, share)
            with weights_aside(self.potential, tried, trainable=True):
                if held_out.score(self.potential) < self._start_score:
                    return share
        return 0.0
