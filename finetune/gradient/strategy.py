"""The base of all gradient strategies: a subclass chooses the parameters and learning rates.

Everything else is the same for all of them: the loop of pretraining, the held-out structures that
decide what is kept, a second training that includes them, and a closed-form refit at the end.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import weights_aside
from ...pretrain.checkpoints.checkpoints import seed_everything
from ...pretrain.errors import TrainingError
from ..closed_form.strategy import WideRefit
from ..safety.guard import HeldOut
from ..state import FineTuning
from ..strategy import Fitted, Learned, Strategy
from .config import GradientConfig
from .replay import Replay, replay_structures
from .train import GradientReport, ParameterGroup, train_parameters


# Length of the second training, which includes the held-out structures, relative to the first.
SECOND_LENGTH = 0.5
# Name of the last stage: the closed-form refit with which every gradient strategy ends.
FINAL_REFIT = "final refit"


class GradientStrategy(Strategy):
    """Trains some of the parameters by gradients; a subclass chooses which."""

    learning_rate: ClassVar[float] = 5e-3
    learning_rate_with_replay: ClassVar[float] = 5e-3

    @abstractmethod
    def learning(
        self, potential: Potential, config: GradientConfig, new_elements: list[int]
    ) -> AbstractContextManager[list[ParameterGroup]]:
        """Context manager that yields the parameters to train, in groups.

        All parameters are frozen when the block is entered; the caller unfreezes those that are
        yielded. On exit, it removes everything that it added to the potential. Raises
        EvenfieldError if there is nothing to train.
        """

    def rate(self, config: GradientConfig, *, replay: bool) -> float:
        """The learning rate of the settings, or else the default (docs/decisions/0009)."""
        if config.learning_rate is not None:
            return config.learning_rate
        return self.learning_rate_with_replay if replay else self.learning_rate

    def learn(self, run: FineTuning) -> Learned:
        """Refit first if `start` says so, then train on the structures that are not held out."""
        if run.config.start == "refit":
            start = run.refit(run.target.train)
            run.judge("refit", kept=start.share)
        elif run.config.start == "wide":
            wide = WideRefit().learn_to_go_on(run)
            run.judge("wide", kept=wide.kept)
        return self.go_on(run)

    def go_on(self, run: FineTuning) -> Learned:
        """Train the current potential on the structures that are not held out."""
        config = run.config.gradient.for_structures(run.target.num_different)
        report = self._train_in_run(run, run.target.train, run.held_out, config)
        kept = report.share if report.best_step else 0.0
        return Learned(kept, gradient=report)

    def finish(self, run: FineTuning, learned: Learned) -> Fitted:
        """Train again with the held-out structures included, then refit in closed form.

        The second training is left out if the first was interrupted, or was not kept in full.
        """
        report = learned.gradient
        assert report is not None, "a gradient strategy learns by a training"
        learned_from = run.target.train
        if run.target.valid and learned.kept == 1.0 and not report.interrupted:
            if not run.target.test:
                # judge now: the next step learns from the structures that it is judged by
                run.judge(self.name, learned.kept)
            report, learned_from = self._with_held_out(run, report)
        # judge the training before the refit below
        if self.name not in run.stages:
            run.judge(self.name, learned.kept)

        end = run.refit(learned_from)
        if run.target.test or learned_from is run.target.train:
            run.judge(FINAL_REFIT, end.share)
        return Fitted(end.report, end.posterior, learned.kept, report)

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
        """Train a potential in place, and keep the best weights by `held_out` (`KeepBest`).

        Without held-out structures, the weights of the last step are kept. `new_elements` are
        atomic numbers. Raises TrainingError if the training cannot continue, and EvenfieldError if
        there is nothing to train.
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

    def _with_held_out(
        self, run: FineTuning, first: GradientReport
    ) -> tuple[GradientReport, list[Structure]]:
        """Train again with the held-out structures included.

        This second, shorter training runs only if the held-out structures have confirmed the first
        one. With few structures, they are too valuable to be used only for a comparison.

        Returns one report on both trainings, and the structures that were learned from.
        """
        accepted_score = run.score()
        steps = max(1, round(SECOND_LENGTH * first.best_step))
        config = run.config.gradient.model_copy(update={"max_steps": steps})
        with weights_aside(run.potential) as aside:
            try:
                second = self._train_in_run(run, run.structures, None, config)
            except TrainingError:
                # keep the first training, which is complete and confirmed
                return first, run.target.train
            confirmed = run.score() <= accepted_score
            if confirmed:
                aside.keep_changes()

        report = replace(
            first,
            seconds=first.seconds + second.seconds,
            interrupted=second.interrupted,
        )
        return report, run.structures if confirmed else run.target.train

    def _train_in_run(
        self,
        run: FineTuning,
        structures: list[Structure],
        held_out: HeldOut | None,
        config: GradientConfig,
    ) -> GradientReport:
        """Train the potential of a run, with the run's replay and seed."""
        return self.train(
            run.potential,
            structures,
            held_out,
            config,
            new_elements=run.new_elements,
            replay=replay_structures(run.model.potential, run.config.replay, run.config.seed),
            seed=run.config.seed,
            quiet=run.quiet,
        )
