"""What a fine-tuning strategy is.

A strategy is one class in a module of its own, and one line in `strategies.py`. The command's help,
the settings and the few-shot curve take their lists from there. Most strategies train some of the
parameters by gradients: derive those from `gradient.strategy.GradientStrategy`, which leaves only
the choice of the parameters to them.

A strategy learns first, and finishes then: between the two, held-out structures have not been
learned from, and several strategies can be compared on them (`auto/choose.py`).
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
    """What a strategy did with the structures that are not held out."""

    kept: float
    """How much of the change was kept, from 0 (all undone) to 1."""
    refitted: Refitted | None = None
    """The closed-form refit, where the strategy is one."""
    gradient: GradientReport | None = None
    """The training, where the strategy has one."""


@dataclass(frozen=True)
class Fitted:
    """What a strategy did.

    `refit` and `posterior` are those of the last closed-form refit: every strategy ends with one,
    because the posterior belongs to the weights that are published.
    """

    refit: RefitReport
    posterior: Posterior
    kept: float
    """How much of the change was kept, from 0 (all undone) to 1."""
    gradient: GradientReport | None = None


class Strategy(ABC):
    """One way to fit a potential to the structures of a target."""

    name: ClassVar[str]
    """What the user types: `strategy=NAME`."""
    description: ClassVar[str]
    """What learns, in a few words, for the help of the command."""
    fewest_to_hold_out: ClassVar[int] = FEWEST_TO_HOLD_OUT
    """With fewer structures none is held out: one or two say little, and all are needed."""

    @abstractmethod
    def learn(self, run: FineTuning) -> Learned:
        """Change `run.potential` by `run.target.train`, as far as held-out structures confirm it.

        `run.score()` and `run.refit()` do that comparison. Nothing is learned from held-out
        structures here.
        """

    @abstractmethod
    def finish(self, run: FineTuning, learned: Learned) -> Fitted:
        """Go on from what `learn` left, with the held-out structures included.

        When the target has no test split, its errors are reported on the held-out structures: a
        strategy calls `run.judge(self.name, ...)` before it learns from those.
        """
