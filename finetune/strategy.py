"""What a fine-tuning strategy is.

A strategy is a class in a separate module and a line in `strategies.py`, from which the command's
help, the settings and the few-shot curve take their lists. Most strategies train some of the
parameters by gradients. Derive those from `gradient.strategy.GradientStrategy`; they only choose
the parameters.

A strategy works in two steps, `learn` and `finish`. Between them, nothing has been learned from the
held-out structures, so that several strategies can be compared on them (`auto/choose.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from .closed_form.posterior import Posterior
from .closed_form.refit import RefitReport
from .gradient.train import GradientReport
from .state import FineTuning, Refitted
from .target import FEWEST_TO_HOLD_OUT


@dataclass(frozen=True)
class Learned:
    """The result of `Strategy.learn`, on the structures that are not held out."""

    kept: float
    """How much of the change was kept, from 0 (all undone) to 1."""
    refitted: Refitted | None = None
    """The closed-form refit, if the strategy is one."""
    gradient: GradientReport | None = None
    """The training, if the strategy has one."""


@dataclass(frozen=True)
class Fitted:
    """The result of `Strategy.finish`.

    Every strategy ends with a closed-form refit, because the posterior must belong to the final
    weights. `refit` and `posterior` are those of this refit.
    """

    refit: RefitReport
    posterior: Posterior
    kept: float
    """How much of the change was kept, from 0 (all undone) to 1."""
    gradient: GradientReport | None = None


class Strategy(ABC):
    """One way to fit a potential to the structures of a target."""

    name: ClassVar[str]
    """The name that the user types: `strategy=NAME`."""
    description: ClassVar[str]
    """What learns, in a few words, for the help of the command."""
    fewest_to_hold_out: ClassVar[int] = FEWEST_TO_HOLD_OUT
    """With fewer structures, none are held out: one or two say little, and all are needed."""

    @abstractmethod
    def learn(self, run: FineTuning) -> Learned:
        """Fit `run.potential` in place to `run.target.train`.

        Keep the change only as far as the held-out structures confirm it: `run.score()` and
        `run.refit()` make this comparison. Do not learn from held-out structures here.
        """

    @abstractmethod
    def finish(self, run: FineTuning, learned: Learned) -> Fitted:
        """Continue from the result of `learn`, now also with the held-out structures.

        If the target has no test split, errors are reported on the held-out structures. Then a
        strategy must call `run.judge(self.name, ...)` before it learns from them.
        """
