"""`strategy=auto`: several strategies learn, and held-out structures choose one of them.

All strategies start from step 0 and learn from the same structures. The one with the smallest
errors on the held-out structures is chosen, and then learns from the held-out structures as well.
Cheap candidates are tried first. A training is tried only if it fits into the time limit of the
settings.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...core.labels import LABELS
from ...pretrain.errors import TrainingError
from ..closed_form.strategy import Refit, WideRefit
from ..gradient.keep_best import FEWEST_TO_CHOOSE
from ..gradient.strategies.full import Full
from ..safety.step0 import step
from ..set_up import set_up
from ..state import FineTuning
from ..strategy import Learned, Strategy
from ..target import hold_out


# If no structures are held out, all parameters are trained from this number of structures on. With
# fewer structures, the refit is better (docs/decisions/0009).
FEWEST_TO_TRAIN_ALL = 8
# Two scores count as equal if they differ by less than LEAST_GAIN (relative), or by less than
# STANDARD_ERRORS standard errors of the paired difference. Among equal candidates, PREFERRED
# decides, which follows earlier studies: from 8 structures on, training all parameters was better
# than any closed form on most data sets (docs/decisions/0009, 0018, 0025).
LEAST_GAIN = 0.05
STANDARD_ERRORS = 0.5
FULL_AFTER_WIDE = "full after wide"
PREFERRED = (FULL_AFTER_WIDE, Full.name, WideRefit.name, Refit.name)
UNDONE = "undone"
# Most divisions into training and held-out structures that are tried until the choice is clear.
MOST_DIVISIONS = 3
# Number of steps that are run to estimate the time of a training.
STEPS_TO_TIME = 4


@dataclass(frozen=True)
class Candidate:
    """A strategy that was tried, or the reason why it was not."""

    name: str
    mae: Mapping[str, float | None] = field(default_factory=dict)
    """Label -> mean absolute error on the held-out structures, in eV/atom and eV/A."""
    shares: np.ndarray | None = None
    """(S,) contribution of each held-out structure to the score, all divisions end to end. None if
    the candidate was not tried."""
    divisions: int = 1
    """Number of divisions on which the candidate was tried."""
    minutes: float = 0.0
    """Time of learning."""
    remark: str = ""
    """Why it was not tried, or that its changes were undone."""

    @property
    def score(self) -> float:
        """Score on the held-out structures (safety/guard.py): lower is better.

        Infinite if the candidate was not tried.
        """
        return np.inf if self.shares is None else float(self.shares.sum()) / self.divisions

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the record of the model and for benchmarks."""
        return {
            "name": self.name,
            "held_out": {LABELS[name].error_key: value for name, value in self.mae.items()},
            "divisions": self.divisions,
            "shares": None if self.shares is None else self.shares.tolist(),
            "minutes": round(self.minutes, 2),
            "remark": self.remark,
        }


@dataclass(frozen=True)
class Choice:
    """The chosen strategy and what it has learned, and all candidates."""

    strategy: Strategy
    learned: Learned
    name: str
    """Name of the chosen candidate."""
    candidates: list[Candidate]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the record of the model."""
        return {
            "chosen": self.name,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True)
class Tried:
    """A candidate that has learned and can be finished, with its own run."""

    candidate: Candidate
    strategy: Strategy
    run: FineTuning
    learned: Learned


def choose(run: FineTuning, say: Callable[[str], object]) -> Choice:
    """Let all candidates learn, and put `run` into the state of the best one.

    say: is called with one line for each candidate and one for the choice. Without held-out
    structures, candidates cannot be compared. Then the strategy depends on the number of
    structures: a refit for few of them, else training of all parameters.
    """
    if run.held_out is None:
        return _by_number(run, say)

    tried, candidates = compare(run)
    how_often = max(candidate.divisions for candidate in candidates)
    say(f"{how_often} x {run.held_out.num_different} held-out structures choose the strategy")
    say(f"  step 0: {_errors(run.held_out.bound.mae)}")
    for candidate in candidates:
        say(_line(candidate))

    chosen = candidates[best_of(candidates)]
    best = next(one for one in tried if one.candidate.name == chosen.name)
    say(f"auto takes {chosen.name}")
    run.take_over(best.run)
    return Choice(best.strategy, best.learned, chosen.name, candidates)


def compare(run: FineTuning) -> tuple[list[Tried], list[Candidate]]:
    """The candidates that learned on the structures of `run`, and all candidates with their scores.

    With few held-out structures, the choice may not be clear. Then the same structures are divided
    in another way, all candidates learn again, and the scores of all divisions are combined.
    """
    assert run.held_out is not None, "candidates are compared on held-out structures"
    seconds = 60 * run.config.auto.minutes
    started = time.perf_counter()
    tried, candidates = try_all(run, seconds)
    divisions = [candidates]
    num_held_out = run.held_out.num_different

    while len(divisions) < MOST_DIVISIONS:
        spent = time.perf_counter() - started
        # assume that the next division takes as long as each earlier one
        enough_time = spent + spent / len(divisions) <= seconds
        if num_held_out >= FEWEST_TO_CHOOSE or is_clear(candidates) or not enough_time:
            break
        other = _divided_again(run, len(divisions))
        if other is None or other.held_out is None:
            break
        num_held_out += other.held_out.num_different
        divisions.append(try_all(other, seconds - spent)[1])
        candidates = [together(list(same)) for same in zip(*divisions, strict=True)]
    return tried, candidates


def is_clear(candidates: list[Candidate]) -> bool:
    """Whether the chosen candidate's score is within LEAST_GAIN of the lowest score.

    If it is not, only noise makes it count as equal to the lowest.
    """
    lowest = min(candidate.score for candidate in candidates)
    taken = candidates[best_of(candidates)].score
    return taken - lowest <= LEAST_GAIN * taken


def together(same: list[Candidate]) -> Candidate:
    """Combine the trials of one candidate on several divisions.

    If it was not tried on one of them, it counts as not tried.
    """
    for one in same:
        if one.shares is None:
            return one
    mean: dict[str, float | None] = {}
    for name in same[0].mae:
        values = [one.mae[name] for one in same]
        known = [value for value in values if value is not None]
        mean[name] = float(np.mean(known)) if known else None
    return Candidate(
        same[0].name,
        mae=mean,
        shares=np.concatenate([one.shares for one in same if one.shares is not None]),
        divisions=len(same),
        minutes=sum(one.minutes for one in same),
        remark=same[0].remark,
    )


def _divided_again(run: FineTuning, division: int) -> FineTuning | None:
    """A run with other held-out structures, after its set-up; None if none can be held out."""
    everything = run.structures
    share = len(run.target.valid) / len(everything)
    train, valid = hold_out(everything, share, run.config.seed + 1000 * division)
    if not valid:
        return None
    target = replace(run.target, train=train, valid=valid)
    other = FineTuning(run.model, target, run.config, quiet=run.quiet)
    # units were checked when the original run began
    set_up(other, trust_units=True)
    return other


def best_of(candidates: list[Candidate]) -> int:
    """Index of the best candidate.

    Candidates are equal to the one with the lowest score if they differ by less than LEAST_GAIN, or
    by less than the noise of the difference. Among these, the best is the first in PREFERRED, and
    those that were undone come last.
    """
    lowest = min(candidates, key=lambda candidate: candidate.score)
    as_good = []
    for place, candidate in enumerate(candidates):
        if candidate.shares is None:
            continue
        gain = candidate.score - lowest.score
        needed = max(LEAST_GAIN * candidate.score, STANDARD_ERRORS * _noise(candidate, lowest))
        if gain <= needed:
            as_good.append(place)

    def preference(place: int) -> tuple[bool, int]:
        one = candidates[place]
        return one.remark == UNDONE, PREFERRED.index(one.name)

    return min(as_good, key=preference)


def _noise(one: Candidate, other: Candidate) -> float:
    """Standard error of the difference of two scores, from its spread over structures.

    0 if a candidate was not tried, or if there are fewer than two structures.
    """
    if one.shares is None or other.shares is None:
        return 0.0
    difference = one.shares - other.shares
    if len(difference) < 2:
        return 0.0
    # the standard error of a sum grows with the square root of the number of terms
    return float(difference.std(ddof=1) * np.sqrt(len(difference))) / one.divisions


def _by_number(run: FineTuning, say: Callable[[str], object]) -> Choice:
    """The choice by the number of structures, if none are held out."""
    number = run.target.num_different
    strategy: Strategy = Refit() if number < FEWEST_TO_TRAIN_ALL else Full()
    say(
        f"auto takes {strategy.name}: no structures are held out by which strategies could be "
        f"compared, and {number} different ones are "
        f"{'few' if number < FEWEST_TO_TRAIN_ALL else 'enough to train all parameters'}"
    )
    return Choice(strategy, strategy.learn(run), strategy.name, [])


def try_all(run: FineTuning, seconds: float) -> tuple[list[Tried], list[Candidate]]:
    """The candidates that have learned, and all candidates, the cheapest first.

    seconds: time limit for trainings.
    """
    wide = WideRefit()
    full = Full()
    tried = [_refitted(Refit(), run), _refitted(wide, run)]
    candidates = [one.candidate for one in tried]

    after_wide = tried[1].run.branch()
    if after_wide.sizes:
        wide.narrow(after_wide, tried[1].learned)
    seconds_left = seconds
    for name, start in ((FULL_AFTER_WIDE, after_wide), (full.name, run)):
        found = _trained(full, name, start, seconds_left)
        if isinstance(found, Candidate):
            candidates.append(found)
            continue
        tried.append(found)
        candidates.append(found.candidate)
        seconds_left -= 60 * found.candidate.minutes
        if found.learned.gradient is not None and found.learned.gradient.interrupted:
            # the user interrupted the training: start no other one
            seconds_left = 0.0
    return tried, candidates


def _refitted(strategy: Refit, run: FineTuning) -> Tried:
    started = time.perf_counter()
    branch = run.branch()
    learned = strategy.learn(branch)
    return _tried(strategy.name, strategy, branch, learned, started)


def _trained(
    strategy: Full, name: str, start: FineTuning, seconds_left: float
) -> Tried | Candidate:
    """Train a strategy; returns a Candidate with a remark if it was not trained or failed."""
    estimated = _seconds_of(strategy, start) if seconds_left > 0 else np.inf
    if estimated > seconds_left:
        would_take = "" if seconds_left <= 0 else f"would take about {estimated / 60:.1f} minutes; "
        remark = f"not tried: {would_take}auto.minutes leaves {max(seconds_left, 0.0) / 60:.1f}"
        return Candidate(name, remark=remark)

    started = time.perf_counter()
    branch = start.branch()
    try:
        learned = strategy.go_on(branch)
    except TrainingError as error:
        return Candidate(name, remark=f"failed: {error.message}")
    return _tried(name, strategy, branch, learned, started)


def _seconds_of(strategy: Full, run: FineTuning) -> float:
    """Estimated time of a training in seconds, from a few steps on a copy."""
    config = run.config.gradient.for_structures(run.target.num_different)
    few = config.model_copy(update={"max_steps": STEPS_TO_TIME})
    potential = copy.deepcopy(run.potential)
    report = strategy.train(
        potential, run.target.train, None, few, new_elements=run.new_elements, seed=run.config.seed
    )
    return report.seconds * config.steps / STEPS_TO_TIME


def _tried(
    name: str, strategy: Strategy, run: FineTuning, learned: Learned, started: float
) -> Tried:
    assert run.held_out is not None, "candidates are compared on held-out structures"
    minutes = (time.perf_counter() - started) / 60
    candidate = Candidate(
        name,
        mae=step(name, run.potential, run.held_out.valid).mae,
        shares=run.held_out.shares(run.potential),
        minutes=minutes,
        remark=UNDONE if learned.kept == 0.0 else "",
    )
    return Tried(candidate, strategy, run, learned)


def _line(candidate: Candidate) -> str:
    """One line about a candidate: its errors, score and time, or why it was not tried."""
    if candidate.shares is None:
        return f"  {candidate.name}: {candidate.remark}"
    remark = f" ({candidate.remark}: worse than step 0)" if candidate.remark else ""
    return (
        f"  {candidate.name}: {_errors(candidate.mae)}, score {candidate.score:.3g}, "
        f"{candidate.minutes:.1f} minutes{remark}"
    )


def _errors(mae: Mapping[str, float | None]) -> str:
    """The errors of all labels as text, with units."""
    found = []
    for name, value in mae.items():
        if value is not None:
            label = LABELS[name]
            found.append(f"{label.display_scale * value:.4g} {label.display_unit}")
    return ", ".join(found)
