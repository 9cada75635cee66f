"""The state of one fine-tuning: the potential as it is now, and how good it is.

`run.py` tells the story, `set_up.py` and the strategies change the potential. All of them use the
same few verbs, which are defined here: `score`, `solve`, `refit` and `judge`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from ase.data import chemical_symbols
from pydantic import Field

from ..core.settings import Settings
from ..data_pipelines.structure import Structure
from ..model_zoo.evaluation.evaluation import predict
from ..model_zoo.evaluation.summary import ErrorSummary, summarise
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.levels import default_level
from ..model_zoo.potential.weights_aside import (
    Weights,
    copied_weights,
    interpolated,
    put_weights,
)
from .closed_form.design_rows import RefitConfig
from .closed_form.posterior import Posterior
from .closed_form.refit import RefitReport, refit_readout
from .gradient.config import GradientConfig
from .gradient.replay import ReplayConfig
from .heads import with_head
from .safety.guard import SHARES, HeldOut
from .target import Target


class FitConfig(Settings):
    """The settings that strategies read; `FineTuneConfig` adds those that come before."""

    # `FineTuneConfig` narrows this to the registered names. Here it makes the key the first one.
    strategy: str = "auto"
    start: Literal["refit", "step0"] = Field(
        default="step0",
        description="where a gradient strategy starts: after the closed-form refit, or before it",
    )
    ensemble: int = Field(
        default=0,
        ge=0,
        le=64,
        description="further heads, refitted to bootstrap samples; their spread is an uncertainty",
    )
    seed: int = Field(default=0, description="of every random draw")
    refit: RefitConfig = RefitConfig()
    gradient: GradientConfig = GradientConfig()
    replay: ReplayConfig = ReplayConfig()


@dataclass(frozen=True)
class Stage:
    """A state of the potential on its way, with its errors on the structures it is judged by."""

    errors: ErrorSummary
    seconds: float
    """Since the start, without the time that judging took."""
    kept: float | None
    """How much of the change was kept, from 0 (all undone) to 1; None without a choice."""


@dataclass(frozen=True)
class Refitted:
    """Outcome of a closed-form refit, and how much of it was kept, from 0 to 1."""

    report: RefitReport
    posterior: Posterior
    share: float


class FineTuning:
    """One potential on its way from pretrained to fine-tuned."""

    def __init__(
        self, model: LoadedModel, target: Target, config: FitConfig, *, quiet: bool
    ) -> None:
        self.model = model
        self.target = target
        self.config = config
        self.quiet = quiet

        level = target.level_of_theory
        self.potential = with_head(model.potential, level, like=_head_to_start_from(model))
        self.head = self.potential.config.levels_of_theory.index(level)
        self.known_elements = _elements_of_the_readout(model, level)
        """Atomic numbers for which the readout of the head was trained."""
        self.known_e0 = _elements_with_e0(model, level)
        """Atomic numbers whose reference energy E0 the head knows."""
        present = {int(z) for structure in target.train for z in structure.elements}
        self.new_elements = sorted(present - self.known_elements)

        self.held_out: HeldOut | None = None
        """What scores the potential; None when no structures are held out."""
        self.step0_weights: Weights = {}
        """The weights after the set-up, before anything was learned."""
        self.stages: dict[str, Stage] = {}
        self._started = time.perf_counter()
        self._seconds_judging = 0.0

    @property
    def structures(self) -> list[Structure]:
        """All structures that may be learned from in the end, held-out ones included."""
        return [*self.target.train, *self.target.valid]

    def score(self) -> float:
        """How bad the potential is on held-out structures: less is better, infinite is forbidden.

        Without held-out structures nothing can be compared, and all potentials score the same.
        """
        return self.held_out.score(self.potential) if self.held_out else 0.0

    def judge(self, name: str, kept: float | None = None) -> None:
        """Evaluate the potential as it is now, and remember it as the stage `name`."""
        seconds = time.perf_counter() - self._started - self._seconds_judging
        if not self.stages:
            seconds = 0.0  # the pretrained potential costs nothing

        judging_started = time.perf_counter()
        split, structures = self.target.judged
        errors = summarise(predict(self.potential, structures), split)
        self._seconds_judging += time.perf_counter() - judging_started
        self.stages[name] = Stage(errors, seconds, kept)

    def solve(self, structures: list[Structure]) -> tuple[RefitReport, Posterior]:
        """Refit readout and E0 to `structures` in closed form, and keep the whole change."""
        return refit_readout(
            self.potential,
            self.head,
            structures,
            known=self.known_elements,
            known_e0=self.known_e0,
            config=self.config.refit,
            bootstrap=self.config.ensemble,
            seed=self.config.seed,
        )

    def refit(self, structures: list[Structure]) -> Refitted:
        """Refit in closed form, and keep the part of the change that is best when held out."""
        start = copied_weights(self.potential)
        start_score = self.score()
        report, posterior = self.solve(structures)
        share = 1.0
        if self.held_out:
            share = self._best_share(start, copied_weights(self.potential), start_score)
        return Refitted(report, posterior, share)

    def _best_share(self, start: Weights, end: Weights, start_score: float) -> float:
        """Go from `start` toward `end` to the lowest score; returns the share of the way."""
        best_share = 0.0
        best_score = start_score
        for share in SHARES:
            put_weights(self.potential, interpolated(start, end, share))
            score = self.score()
            if score < best_score:
                best_share = share
                best_score = score
        put_weights(self.potential, interpolated(start, end, best_share))
        return best_share


def _head_to_start_from(model: LoadedModel) -> str:
    """The head that a new one starts as a copy of: the model's default, else its first.

    The choice is judged like everything else: errors at step 0 are on the new data.
    """
    levels = model.potential.config.levels_of_theory
    return default_level(model.record, levels) or levels[0]


def _elements_of_the_readout(model: LoadedModel, level: str) -> set[int]:
    """Atomic numbers that the readout for `level` has learned.

    A new level of theory starts from the readout of another head.
    """
    levels = model.potential.config.levels_of_theory
    source = level if level in levels else _head_to_start_from(model)
    symbols = model.record.trained_symbols(source)
    return {chemical_symbols.index(symbol) for symbol in symbols}


def _elements_with_e0(model: LoadedModel, level: str) -> set[int]:
    """Atomic numbers whose E0 is known at `level`; none carry over to a new level of theory."""
    if level not in model.potential.config.levels_of_theory:
        return set()
    return _elements_of_the_readout(model, level)
