"""Fine-tuning from data to a better model: step-0 table, closed-form refit, a gradient strategy; never worse."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ase.data import chemical_symbols
from pydantic import Field

from ..core.settings import Settings
from ..data_pipelines.sources.config import SourceConfig
from ..data_pipelines.structure import Structure
from ..model_zoo.evaluation.evaluation import predict, with_a_head
from ..model_zoo.evaluation.summary import ErrorSummary, summarise
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.potential.potential import Potential
from ..model_zoo.potential.weights_aside import (
    Weights,
    copied_weights,
    interpolated,
    put_weights,
    weights_aside,
)
from .closed_form.posterior import Posterior
from .closed_form.radii import refit_radii
from .closed_form.reference_energies import ReferenceReport, refit_reference_energies
from .closed_form.refit import RefitConfig, RefitReport, refit_readout
from .gradient.new_elements import start_from_neighbours
from .gradient.replay import ReplayConfig, draw_for_replay, labelled_by
from .gradient.train import GradientConfig, GradientReport, GradientStrategy, train_gradient
from .heads import with_ensemble, with_head
from .safety.guard import SHARES, HeldOut
from .safety.step0 import Step, refuse_if_worse, refuse_wrong_units, step, worse_labels
from .target import Target, open_target


Strategy = Literal["auto", "refit", "readout", "lora", "full", "new-element"]
FEW = 8  # training structures: with fewer, the refit alone (docs/decisions/0009)
ONCE_MORE = (
    0.5  # length of the training with the held-out structures over that of the one before it
)


class FineTuneConfig(Settings):
    """What is fitted, and how."""

    strategy: Strategy = Field(default="auto", description="auto: by the number of structures")
    start: Literal["refit", "step0"] = Field(
        default="step0", description="where a gradient strategy starts"
    )
    num_structures: int | None = Field(
        default=None, gt=0, description="training structures drawn; all when not given"
    )
    valid_share: float = Field(
        default=0.2, ge=0, lt=1, description="held out where the data have no validation split"
    )
    seed: int = 0
    trust_units: bool = Field(
        default=False, description="go on though labels look like another unit"
    )
    ensemble: int = Field(
        default=0, ge=0, le=64, description="further heads by bootstrap, for uncertainty"
    )
    source: SourceConfig = SourceConfig()
    refit: RefitConfig = RefitConfig()
    gradient: GradientConfig = GradientConfig()
    replay: ReplayConfig = ReplayConfig()


@dataclass
class FineTuned:
    """A fine-tuned potential and how it came about.

    `table`: errors on the new data step by step. `evaluations`: on the judged split of
    pretrained, step0, refit and the strategy. `kept`: how much of the refit and of the strategy was better on held-out
    structures than what was there before, from 0 to 1; the rest is undone.
    """

    potential: Potential
    level_of_theory: str
    strategy: str
    target: Target
    table: list[Step]
    reference: ReferenceReport
    refit: RefitReport
    posterior: Posterior
    evaluations: dict[str, ErrorSummary] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    gradient: GradientReport | None = None
    held_out: tuple[float, float] | None = (
        None  # score at step 0 and at the end (guard.py); None if none was held out
    )

    @property
    def structures(self) -> list[Structure]:
        """All structures that were learned from or chosen by."""
        return [*self.target.train, *self.target.valid]


def finetune(
    model: LoadedModel,
    data: Path | str | Target,
    config: FineTuneConfig,
    *,
    work: Path | None = None,
    quiet: bool = True,
) -> FineTuned:
    """Fine-tune to a converted data set, a file (converted into `work`) or a Target; the model itself is not changed.

    First E0 (step 0), embeddings of new elements and core radii are set up, then readout and E0 are refitted
    together, then the strategy's parameters are trained. Each is kept only if no error on held-out structures is
    above that of step 0. Raises WorseError when the set-up made the model worse, ValueError for labels that look like
    another unit.
    """
    target = data if isinstance(data, Target) else _open(data, config, work)
    return _Run(model, target, config, quiet).result()


def _open(data: Path | str, config: FineTuneConfig, work: Path | None) -> Target:
    options = config.model_dump(include={"num_structures", "seed", "valid_share", "strategy"})
    return open_target(data, **options, source=config.source, work=work)


def choose_strategy(num_structures: int) -> Strategy:
    """The rule of docs/decisions/0009: the refit alone for few structures, then all parameters after it."""
    return "refit" if num_structures < FEW else "full"


class _Run:
    """One fine-tuning; the methods in the order in which they are called."""

    def __init__(
        self, model: LoadedModel, target: Target, config: FineTuneConfig, quiet: bool
    ) -> None:
        self.model, self.target, self.config, self.quiet = model, target, config, quiet
        level = target.level_of_theory
        self.potential = with_head(model.potential, level)
        self.head = self.potential.config.levels_of_theory.index(level)
        self.known, self.known_e0 = _known_elements(model, level)
        self.new = sorted({int(z) for s in target.train for z in s.elements} - self.known)
        self.evaluations: dict[str, ErrorSummary] = {}
        self.seconds: dict[str, float] = {}
        self.kept: dict[str, float] = {}
        self.with_all = False  # whether held-out structures were learned from as well
        self.started, self.judging = time.perf_counter(), 0.0

    def result(self) -> FineTuned:
        self._judge("pretrained")
        self.seconds["pretrained"] = 0.0
        self.table = [step("pretrained", self.potential, self.target.train)]
        if not self.config.trust_units:
            refuse_wrong_units(self.potential, self.target.train)
        reference = self._set_up()
        self.step0_weights = copied_weights(self.potential)
        strategy, gradient = self.config.strategy, None
        if strategy == "auto":
            strategy = choose_strategy(len(self.target.train) + len(self.target.valid))
        if strategy == "refit" or self.config.start == "refit":
            refit, posterior = self._refit("refit")
        if strategy == "refit":
            refit, posterior = self._with_all_structures(refit, posterior)
        else:
            gradient = self._train(strategy)
            refit, posterior = self._refit(strategy)
        if self.target.test or strategy not in self.evaluations:
            self._judge(strategy)
        self.potential = with_ensemble(self.potential, posterior)
        scores = (self.held_out.step0, self._score()) if self.held_out else None
        return FineTuned(
            self.potential, self.target.level_of_theory, strategy, self.target, self.table, reference, refit,
            posterior, self.evaluations, self.seconds, self.kept, gradient, scores,
        )  # fmt: skip

    def _set_up(self) -> ReferenceReport:
        """E0, then embeddings of new elements and core radii where they help; the table says what they did."""
        potential, train = self.potential, self.target.train
        reference = refit_reference_energies(potential, self.head, train, self.known_e0)
        self.known_e0 = set() if reference.another_zero else self.known_e0
        self.table.append(step("step 0: E0 refitted", potential, train))
        self._judge("step0")
        valid = self.target.valid
        self.held_out = HeldOut(potential, train, valid) if valid else None
        self._if_not_worse(lambda: start_from_neighbours(potential, self.new, self.known))
        self._if_not_worse(lambda: refit_radii(potential, self.head, train))
        self.table.append(step("set-up: new elements, core radii", potential, train))
        refuse_if_worse(self.table)
        return reference

    def _if_not_worse(self, change: Callable[[], object]) -> None:
        """Change the potential, with E0 after it; back to what it was when an error rises, held out or not."""
        before, score = self.table[-1], self._score()
        with weights_aside(self.potential) as aside:
            change()
            refit_reference_energies(self.potential, self.head, self.target.train, self.known_e0)
            changed = step("changed", self.potential, self.target.train)
            if not worse_labels(changed, before) and self._score() <= score:
                aside.keep_changes()

    def _refit(self, name: str) -> tuple[RefitReport, Posterior]:
        """Readout and E0 in closed form, as far toward the solution as is best on held-out structures."""
        start = copied_weights(self.potential)
        score = self._score()
        report, posterior = self._closed_form(
            self.structures if self.with_all else self.target.train
        )
        share = 1.0
        if self.held_out:
            share = self._best_share(start, copied_weights(self.potential), score)
        if name == "refit":
            self.kept["refit"] = share
            self._judge("refit")
        return report, posterior

    def _best_share(self, start: Weights, end: Weights, best: float) -> float:
        """Go from the weights `start`, whose score is `best`, toward `end` as far as the score is least."""
        best_share = 0.0
        for share in SHARES:
            with weights_aside(self.potential, interpolated(start, end, share)):
                score = self._score()
            if score < best:
                best = score
                best_share = share
        put_weights(self.potential, interpolated(start, end, best_share))
        return best_share

    def _with_all_structures(
        self, refit: RefitReport, posterior: Posterior
    ) -> tuple[RefitReport, Posterior]:
        """The refit once more from step 0, now to held-out structures too: they have said that it is good."""
        if not self.target.valid or not self.kept["refit"]:
            return refit, posterior
        score = self._score()
        with weights_aside(self.potential, self.step0_weights) as accepted:
            new = self._closed_form(self.structures)
            if self._score() <= score:
                accepted.keep_changes()
                return new
        return refit, posterior

    def _closed_form(self, structures: list[Structure]) -> tuple[RefitReport, Posterior]:
        return refit_readout(
            self.potential, self.head, structures, known=self.known, known_e0=self.known_e0,
            config=self.config.refit, bootstrap=self.config.ensemble, seed=self.config.seed,
        )  # fmt: skip

    @property
    def structures(self) -> list[Structure]:
        return [*self.target.train, *self.target.valid]

    def _score(self) -> float:
        """On held-out structures; without any, all is as good."""
        return self.held_out.score(self.potential) if self.held_out else 0.0

    def _judge(self, name: str) -> None:
        split, structures = self.target.judged
        self.seconds[name] = time.perf_counter() - self.started - self.judging
        started = time.perf_counter()
        self.evaluations[name] = summarise(predict(self.potential, structures), split)
        self.judging += time.perf_counter() - started

    def _train(self, strategy: Strategy) -> GradientReport:
        """The gradient strategy, which keeps what is best on held-out structures; from there on with all of them."""
        assert strategy != "auto" and strategy != "refit"
        config = self.config.gradient.for_structures(len(self.structures))
        report = self._gradient(strategy, self.target.train, self.held_out, config)
        self.kept[strategy] = report.share if report.best_step else 0.0
        if self.target.valid and self.kept[strategy] == 1.0 and not report.interrupted:
            if not self.target.test:
                self._judge(strategy)  # as long as the held-out structures still are
            score = self._score()
            steps = max(1, round(ONCE_MORE * report.best_step))
            shorter = config.model_copy(update={"max_steps": steps})
            with weights_aside(self.potential) as accepted:
                second = self._gradient(strategy, self.structures, None, shorter)
                self.with_all = self._score() <= score
                if self.with_all:
                    accepted.keep_changes()
            report = replace(
                report, seconds=report.seconds + second.seconds, interrupted=second.interrupted
            )
        return report

    def _gradient(
        self,
        strategy: GradientStrategy,
        train: list[Structure],
        held_out: HeldOut | None,
        config: GradientConfig,
    ) -> GradientReport:
        return train_gradient(
            self.potential, strategy, train, held_out, config,
            new_elements=self.new, replay=self._replay(), seed=self.config.seed, quiet=self.quiet,
        )  # fmt: skip

    def _replay(self) -> tuple[list[Structure], float] | None:
        """Structures to be seen again, with the data's labels or those of the model as it was."""
        replay = self.config.replay
        if replay.data is None:
            return None
        model = self.model.potential
        structures = list(
            with_a_head(
                model, draw_for_replay(replay.data, replay.num_structures, self.config.seed)
            )
        )
        if replay.own_labels:
            structures = labelled_by(model, structures)
        if not structures:
            raise ValueError(
                f"{replay.data}: holds no structure of a level of theory that the model has: name another"
            )
        return structures, replay.share


def _known_elements(model: LoadedModel, level: str) -> tuple[set[int], set[int]]:
    """Atomic numbers whose readout the head has learned, and those whose E0 it knows.

    A new level of theory takes over the readout of the model's first head, but no E0 carries over.
    """
    levels, elements = model.potential.config.levels_of_theory, model.record.elements
    source = elements.get(level if level in levels else levels[0], [])
    known = {chemical_symbols.index(symbol) for symbol in source}
    return known, known if level in levels else set()
