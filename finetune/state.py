"""The state of one fine-tuning: the potential as it is now, and how good it is.

`run.py` tells the story, `set_up.py` and the strategies change the potential. All of them use the
same few verbs, which are defined here: `score`, `solve`, `refit` and `judge`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ase.data import chemical_symbols
from pydantic import Field

from ..core.errors import EvenfieldError
from ..core.level_names import refuse_other_spelling
from ..core.settings import Settings
from ..data_pipelines.physics.residual import refuse_other_physics
from ..data_pipelines.structure import Structure
from ..model_zoo.evaluation.evaluation import predict
from ..model_zoo.evaluation.summary import ErrorSummary, summarise
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.levels import default_level, own_levels
from ..model_zoo.potential.weights_aside import (
    Weights,
    copied_weights,
    interpolated,
    put_weights,
)
from .auto.config import AutoConfig
from .closed_form.design_rows import RefitConfig
from .closed_form.posterior import Posterior
from .closed_form.refit import RefitReport, refit_readout
from .gradient.config import GradientConfig
from .gradient.replay import ReplayConfig
from .heads import with_head
from .safety.guard import SHARES, HeldOut
from .safety.step0 import misfit
from .target import Target


# Structures by which the heads of a model are compared.
NUM_TO_COMPARE = 32
# The misfit of the model's default level is multiplied by this: another one must be clearly nearer.
FAVOUR = 0.9
# Training structures with an element, below which a head has learned too little to start from.
FEWEST_TO_START_FROM = 20


class FitConfig(Settings):
    """The settings that strategies read; `FineTuneConfig` adds those that come before."""

    # `FineTuneConfig` narrows this to the registered names. Here it makes the key the first one.
    strategy: str = "auto"
    start: Literal["step0", "refit", "wide"] = Field(
        default="step0",
        description="where a gradient strategy starts: before any refit in closed form, or after "
        "the usual or the wide one; auto tries its own starts",
    )
    ensemble: int = Field(
        default=0,
        ge=0,
        le=64,
        description="further heads, refitted to bootstrap samples; their spread is an uncertainty",
    )
    seed: int = Field(default=0, ge=0, description="of every random draw")
    auto: AutoConfig = AutoConfig()
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

        # whoever made the target: a model would learn other labels than it is asked for
        refuse_other_physics(
            target.physics, model.potential.config.physics, target.folder or target.source.name
        )
        level = target.level_of_theory
        self.source_level = _level_to_start_from(model, target)
        """The level of theory whose head the new head is a copy of."""
        self.potential = with_head(model.potential, level, self.source_level)
        self.head = self.potential.config.levels_of_theory.index(level)
        self.known_elements = _elements_of(model, self.source_level)
        """Atomic numbers for which the readout of the head was trained."""
        is_new = level not in model.potential.config.levels_of_theory
        # no reference energy carries over to a new level of theory
        self.known_e0 = set() if is_new else set(self.known_elements)
        """Atomic numbers whose reference energy E0 the head knows."""
        present = {int(z) for structure in target.train for z in structure.elements}
        self.new_elements = sorted(present - self.known_elements)

        self.held_out: HeldOut | None = None
        """What scores the potential; None when no structures are held out."""
        self.step0_weights: Weights = {}
        """The weights after the set-up, before anything was learned."""
        self.sizes: tuple[int, ...] = ()
        """Numbers of features that a wide refit chooses from; none for the usual refit."""
        self.stages: dict[str, Stage] = {}
        self._started = time.perf_counter()
        self._seconds_judging = 0.0

    @property
    def structures(self) -> list[Structure]:
        """All structures that may be learned from in the end, held-out ones included."""
        return [*self.target.train, *self.target.valid]

    def branch(self) -> FineTuning:
        """A run that goes on from here by itself: what it changes does not change this one."""
        branch = copy.copy(self)
        branch.potential = copy.deepcopy(self.potential)
        branch.stages = dict(self.stages)
        return branch

    def take_over(self, branch: FineTuning) -> None:
        """Go on as `branch`, which went on from here before."""
        self.potential = branch.potential
        self.step0_weights = branch.step0_weights
        self.sizes = branch.sizes
        self.stages = branch.stages

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
        counts = train_counts(self.model.record.train_counts, self.structures)
        errors = summarise(predict(self.potential, structures), split, counts)
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
            sizes=self.sizes,
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


def train_counts(known: Mapping[str, int], structures: Iterable[Structure]) -> dict[str, int]:
    """Symbol -> training structures that contain it: those that are known, and the new ones."""
    counts = dict(known)
    for structure in structures:
        for z in structure.elements:
            symbol = chemical_symbols[z]
            counts[symbol] = counts.get(symbol, 0) + 1
    return counts


def _level_to_start_from(model: LoadedModel, target: Target) -> str:
    """The level of theory whose head comes nearest to the new labels; the target's own if known.

    The order of the heads says nothing about them. Their forces and stresses are compared, or
    without any the energies that composition does not explain: none depends on the zero of energy.
    Heads that have learned an element of the target from few structures are left out, if there are
    others. Without any label, it is the model's default, or its first.
    """
    levels = own_levels(model.potential.config.levels_of_theory)
    _refuse_other_spelling(target, levels)
    if target.level_of_theory in model.potential.config.levels_of_theory:
        return target.level_of_theory
    default = default_level(model.record, levels) or levels[0]
    if len(levels) == 1:
        return default

    sample = target.train[:: max(1, len(target.train) // NUM_TO_COMPARE)]
    best = default
    smallest = math.inf
    for level in _experienced(model, list(dict.fromkeys([default, *levels])), sample):
        as_if = [replace(structure, level_of_theory=level) for structure in sample]
        error = misfit(predict(model.potential, as_if))
        if level == default:
            error *= FAVOUR
        if error < smallest:
            best = level
            smallest = error
    return best


def _experienced(model: LoadedModel, levels: list[str], sample: list[Structure]) -> list[str]:
    """The levels whose heads have learned the elements of a sample; all of them if none has."""
    symbols = {chemical_symbols[z] for structure in sample for z in structure.elements}
    counts = model.record.level_counts

    def fewest(level: str) -> int:
        return min(counts[level].get(symbol, 0) for symbol in symbols)

    counted = [level for level in levels if level in counts]
    return [level for level in counted if fewest(level) >= FEWEST_TO_START_FROM] or levels


def _refuse_other_spelling(target: Target, levels: list[str]) -> None:
    """Raise EvenfieldError for a level of theory of the model, spelt in another way."""
    setting = f"{target.how_to_read_again} {target.setting_prefix}level_of_theory"
    refuse_other_spelling(
        [target.level_of_theory],
        levels,
        EvenfieldError,
        owner="the model",
        file=None,
        remedy=lambda other: (
            f"{setting}={other!r} if it is the same, or else a name that differs more"
        ),
    )


def _elements_of(model: LoadedModel, level: str) -> set[int]:
    """Atomic numbers that the readout for `level` has learned."""
    symbols = model.record.trained_symbols(level)
    return {chemical_symbols.index(symbol) for symbol in symbols}
