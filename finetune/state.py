"""The state of one fine-tuning: the current potential and its errors.

`run.py` runs the fine-tuning; `set_up.py` and the strategies change the potential. All of them use
the methods that are defined here: `score`, `solve`, `refit` and `judge`.
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


# Number of structures on which the heads of a model are compared.
NUM_TO_COMPARE = 32
# The misfit of the model's default level is multiplied by this factor, so that another level is
# chosen only if it fits clearly better.
FAVOUR = 0.9
# A head is a good start only if it has learned each element from at least this many structures.
FEWEST_TO_START_FROM = 20


class FitConfig(Settings):
    """The settings that strategies read; `FineTuneConfig` adds those for the data."""

    # `FineTuneConfig` narrows the type to the registered names. Declared here to be the first key.
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
    """Errors on the judged structures at one stage of the fine-tuning."""

    errors: ErrorSummary
    seconds: float
    """Time since the start, without the time for judging."""
    kept: float | None
    """How much of the change was kept, from 0 (all undone) to 1; None if there was no choice."""


@dataclass(frozen=True)
class Refitted:
    """Result of a closed-form refit; share: how much of the change was kept, from 0 to 1."""

    report: RefitReport
    posterior: Posterior
    share: float


class FineTuning:
    """The state of one fine-tuning: the potential, which changes in place, and its stages.

    Raises EvenfieldError if the target's level of theory is a level of the model in another
    spelling, and PhysicsError if other physics than the model's was subtracted from the labels.
    """

    def __init__(
        self, model: LoadedModel, target: Target, config: FitConfig, *, quiet: bool
    ) -> None:
        self.model = model
        self.target = target
        self.config = config
        self.quiet = quiet

        # checked here too, because a Target can be made in other ways than by `open_target`
        refuse_other_physics(
            target.physics, model.potential.config.physics, target.folder or target.source.name
        )
        level = target.level_of_theory
        self.source_level = _level_to_start_from(model, target)
        """The level of theory whose head is copied for a new head."""
        self.potential = with_head(model.potential, level, self.source_level)
        self.head = self.potential.config.levels_of_theory.index(level)
        self.known_elements = _elements_of(model, self.source_level)
        """Atomic numbers for which the readout of the head was trained."""
        is_new = level not in model.potential.config.levels_of_theory
        # reference energies do not carry over to a new level of theory
        self.known_e0 = set() if is_new else set(self.known_elements)
        """Atomic numbers of elements whose reference energy E0 the head knows."""
        present = {int(z) for structure in target.train for z in structure.elements}
        self.new_elements = sorted(present - self.known_elements)

        self.held_out: HeldOut | None = None
        """Scores the potential; None if no structures are held out, and before the set-up."""
        self.step0_weights: Weights = {}
        """The weights after the set-up, before anything was learned."""
        self.sizes: tuple[int, ...] = ()
        """Numbers of features among which a wide refit chooses; empty for the usual refit."""
        self.stages: dict[str, Stage] = {}
        self._started = time.perf_counter()
        self._seconds_judging = 0.0

    @property
    def structures(self) -> list[Structure]:
        """All structures that may finally be learned from, including the held-out ones."""
        return [*self.target.train, *self.target.valid]

    def branch(self) -> FineTuning:
        """An independent copy of the current state: its changes do not affect this run."""
        branch = copy.copy(self)
        branch.potential = copy.deepcopy(self.potential)
        branch.stages = dict(self.stages)
        return branch

    def take_over(self, branch: FineTuning) -> None:
        """Continue with the state of `branch`, an earlier branch of this run."""
        self.potential = branch.potential
        self.step0_weights = branch.step0_weights
        self.sizes = branch.sizes
        self.stages = branch.stages

    def score(self) -> float:
        """Score of the potential on the held-out structures: lower is better.

        Infinite if an error is higher than at step 0, which is forbidden. Always 0 if no structures
        are held out.
        """
        return self.held_out.score(self.potential) if self.held_out else 0.0

    def judge(self, name: str, kept: float | None = None) -> None:
        """Evaluate the current potential, and store its errors as the stage `name`."""
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
        """Refit readout and E0 to `structures` in closed form, and keep the full change."""
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
        """Refit in closed form, and keep the share of the change with the best held-out score."""
        start = copied_weights(self.potential)
        start_score = self.score()
        report, posterior = self.solve(structures)
        share = 1.0
        if self.held_out:
            share = self._best_share(start, copied_weights(self.potential), start_score)
        return Refitted(report, posterior, share)

    def _best_share(self, start: Weights, end: Weights, start_score: float) -> float:
        """Interpolate from `start` to `end` to the lowest score; returns the share of the way.

        0 if no tried share scores lower than `start_score`.
        """
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
    """Symbol -> number of training structures that contain it, known counts plus `structures`."""
    counts = dict(known)
    for structure in structures:
        for z in structure.elements:
            symbol = chemical_symbols[z]
            counts[symbol] = counts.get(symbol, 0) + 1
    return counts


def _level_to_start_from(model: LoadedModel, target: Target) -> str:
    """The level of theory whose head fits the new labels best; the target's own level if known.

    Heads are compared by their errors of forces and stresses. If there are no such labels, they are
    compared by the part of the energies that composition does not explain. Neither depends on the
    zero of energy. Heads that have learned an element of the target from few structures are left
    out if there are other heads. Without any labels, it is the model's default level, or its first.

    Raises EvenfieldError if the target's level is a level of the model in another spelling.
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
    """The levels whose heads have learned all elements of a sample; all levels if none has."""
    symbols = {chemical_symbols[z] for structure in sample for z in structure.elements}
    counts = model.record.level_counts

    def fewest(level: str) -> int:
        return min(counts[level].get(symbol, 0) for symbol in symbols)

    counted = [level for level in levels if level in counts]
    return [level for level in counted if fewest(level) >= FEWEST_TO_START_FROM] or levels


def _refuse_other_spelling(target: Target, levels: list[str]) -> None:
    """Raise EvenfieldError if the target's level is a level of the model in another spelling."""
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
