"""The base of all gradient strategies: each of them says which parameters learn, and how fast.

Everything else is the same for all: the loop of pretraining, the held-out structures that decide
what is kept, a second training that includes them, and a closed-form refit at the end.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import ClassVar

from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import weights_aside
from ...pretrain.checkpoints.checkpoints import seed_everything
from ...pretrain.errors import TrainingError
from ..safety.guard import HeldOut
from ..state import FineTuning
from ..strategy import Fitted, Strategy
from .config import GradientConfig
from .replay import Replay, replay_structures
from .train import GradientReport, ParameterGroup, train_parameters


# Length of the second training, which includes the held-out structures, relative to the first.
SECOND_LENGTH = 0.5
# The stage after a gradient strategy: the closed-form refit that every one of them ends with.
FINAL_REFIT = "final refit"


class GradientStrategy(Strategy):
    """Trains some of the parameters by gradients; a subclass says which."""

    learning_rate: ClassVar[float] = 5e-3
    learning_rate_with_replay: ClassVar[float] = 5e-3

    @abstractmethod
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> AbstractContextManager[list[ParameterGroup]]:
        """The parameters that learn, in groups, for the length of a `with` block.

        All parameters are frozen when it is entered; it releases those that it yields. On exit it
        removes what it added to the potential. Raises EvenfieldError when nothing can learn.
        """

    def rate(self, config: GradientConfig, *, replay: bool) -> float:
        """The learning rate that was set, or the best one measured (docs/decisions/0009)."""
        if config.learning_rate is not None:
            return config.learning_rate
        return self.learning_rate_with_replay if replay else self.learning_rate

    def fit(self, run: FineTuning) -> Fitted:
        """Train, keep what held-out structures confirm, then refit the readout in closed form."""
        if run.config.start == "refit":
            start = run.refit(run.target.train)
            run.judge("refit", kept=start.share)
        report, kept, learned_from = self._train(run)
        # now, because the refit below is no part of what the training did
        if self.name not in run.stages:
            run.judge(self.name, kept)

        end = run.refit(learned_from)
        if run.target.test or learned_from is run.target.train:
            run.judge(FINAL_REFIT, end.share)
        return Fitted(end.report, end.posterior, kept, report)

    def train(
        self,
        potential: Potential,
        train: list[Structure],
        held_out: HeldOut | None,
        config: GradientConfig,
        *,
        new_elements: list[int],
        replay: Replay | None = None,
        seed: int = 0,
        quiet: bool = True,
    ) -> GradientReport:
        """Train a potential in place and keep the best weights by `held_out` (`KeepBest`).

        Without held-out structures the weights of the last step are kept.
        """
        seed_everything(seed)  # before `learning`, which may draw random numbers
        started = time.perf_counter()
        device = next(potential.parameters()).device
        learned_before = {name: p.requires_grad for name, p in potential.named_parameters()}

        potential.requires_grad_(False)
        with self.learning(potential, config, new_elements) as groups:
            for group in groups:
                for parameter in group.parameters:
                    parameter.requires_grad_()
            report = train_parameters(
                potential,
                groups,
                self.rate(config, replay=replay is not None),
                train,
                held_out,
                config,
                replay=replay,
                seed=seed,
                quiet=quiet,
            )

        for name, parameter in potential.named_parameters():
            parameter.requires_grad_(learned_before[name])
        potential.to(device).eval()
        return replace(report, seconds=time.perf_counter() - started)

    def _train(self, run: FineTuning) -> tuple[GradientReport, float, list[Structure]]:
        """Report, how much was kept, and the structures that were learned from.

        Once the held-out structures have confirmed the training, a second and shorter one includes
        them: few structures are too valuable to be used for a comparison alone.
        """
        config = run.config.gradient.for_structures(run.target.num_different)
        train = partial(
            self.train,
            run.potential,
            new_elements=run.new_elements,
            replay=replay_structures(run.model.potential, run.config.replay, run.config.seed),
            seed=run.config.seed,
            quiet=run.quiet,
        )

        report = train(run.target.train, run.held_out, config)
        kept = report.share if report.best_step else 0.0
        if not run.target.valid or kept < 1.0 or report.interrupted:
            return report, kept, run.target.train

        if not run.target.test:
            run.judge(self.name, kept)  # before the structures it is judged by are learned from
        accepted_score = run.score()
        steps = max(1, round(SECOND_LENGTH * report.best_step))
        second_config = config.model_copy(update={"max_steps": steps})
        with weights_aside(run.potential) as aside:
            try:
                second = train(run.structures, None, second_config)
            except TrainingError:
                # the first training has been confirmed, and is whole
                return report, kept, run.target.train
            confirmed = run.score() <= accepted_score
            if confirmed:
                aside.keep_changes()

        report = replace(
            report,
            seconds=report.seconds + second.seconds,
            interrupted=second.interrupted,
        )
        return report, kept, run.structures if confirmed else run.target.train
