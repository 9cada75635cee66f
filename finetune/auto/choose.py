"""`strategy=auto`: several strategies learn, and held-out structures choose one of them.

All start from step 0 and learn from the same structures. Their errors on the held-out ones decide,
and the chosen one finishes: it learns from the held-out structures as well. Cheap candidates come
first. A training is tried only if it fits into the minutes of the settings.
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


# Without held-out structures, the refit alone is better than training all parameters below this
# number of structures (docs/decisions/0009).
FEWEST_TO_TRAIN_ALL = 8
# Scores that differ by less than this part, or by less than this many standard errors of the paired
# difference, are equal. Among equals, earlier studies decide: at 8 structures and more, training
# all parameters was better than any closed form on most sets (docs/decisions/0009, 0018, 0025).
LEAST_GAIN = 0.05
STANDARD_ERRORS = 0.5
FULL_AFTER_WIDE = "full after wide"
PREFERRED = (FULL_AFTER_WIDE, Full.name, WideRefit.name, Refit.name)
UNDONE = "undone"
# Ways to divide the structures that are tried until the choice is clear.
MOST_DIVISIONS = 3
# Steps by which the time of a training is estimated.
STEPS_TO_TIME = 4


@dataclass(frozen=True)
class Candidate:
    """A strategy that was tried, or why it was not."""

    name: str
    mae: Mapping[str, float | None] = field(default_factory=dict)
    """Mean absolute errors on the held-out structures by label, in eV/atom and eV/A."""
    shares: np.ndarray | None = None
    """(S,) what each held-out structure adds to the score, of all divisions end to end."""
    divisions: int = 1
    """Ways to divide the structures on which it was tried."""
    minutes: float = 0.0
    """That learning took."""
    remark: str = ""

    @property
    def score(self) -> float:
        """Lower is better; see safety/guard.py. Infinite if it was not tried."""
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
    """The strategy that was chosen and what it has learned; and every candidate."""

    strategy: Strategy
    learned: Learned
    name: str
    """Of the chosen candidate."""
    candidates: list[Candidate]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the record of the model."""
        return {
            "chosen": self.name,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True)
class Tried:
    """A candidate that has learned, and can be finished."""

    candidate: Candidate
    strategy: Strategy
    run: FineTuning
    learned: Learned


def choose(run: FineTuning, say: Callable[[str], object]) -> Choice:
    """Let all candidates learn, and leave `run` as the best of them has left it.

    `say` is told one line for each candidate, and the choice. Without held-out structures nothing
    can be compared: few structures are refitted, and more train all parameters.
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
    """What learned on the structures of `run`, and all candidates with their scores.

    Few held-out structures may not decide. Then the same structures are divided in another way, all
    candidates learn once more, and what every held-out structure says is put together.
    """
    assert run.held_out is not None, "candidates are compared on held-out structures"
    seconds = 60 * run.config.auto.minutes
    started = time.perf_counter()
    tried, candidates = try_all(run, seconds)
    divisions = [candidates]
    num_held_out = run.held_out.num_different

    while len(divisions) < MOST_DIVISIONS:
        spent = time.perf_counter() - started
        # the next one takes as long as those before
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
    """Whether the candidate to take is as good as the lowest score, and not within noise alone."""
    lowest = min(candidate.score for candidate in candidates)
    taken = candidates[best_of(candidates)].score
    return taken - lowest <= LEAST_GAIN * taken


def together(same: list[Candidate]) -> Candidate:
    """One candidate from its trials on several divisions; without one of them, it was not tried."""
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
    """A run whose held-out structures are others, ready to learn; None if none can be held out."""
    everything = run.structures
    share = len(run.target.valid) / len(everything)
    train, valid = hold_out(everything, share, run.config.seed + 1000 * division)
    if not valid:
        return None
    target = replace(run.target, train=train, valid=valid)
    other = FineTuning(run.model, target, run.config, quiet=run.quiet)
    # units were looked at when the run began
    set_up(other, trust_units=True)
    return other


def best_of(candidates: list[Candidate]) -> int:
    """The place of the best of candidates.

    Of those whose score is the lowest, up to LEAST_GAIN or up to the noise of their difference, it
    is the first of PREFERRED that was not undone.
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
    """Standard error of the difference of two scores, from its spread over structures."""
    if one.shares is None or other.shares is None:
        return 0.0
    difference = one.shares - other.shares
    if len(difference) < 2:
        return 0.0
    # the standard error of a sum grows with the root of its terms
    return float(difference.std(ddof=1) * np.sqrt(len(difference))) / one.divisions


def _by_number(run: FineTuning, say: Callable[[str], object]) -> Choice:
    """The choice without held-out structures."""
    number = run.target.num_different
    strategy: Strategy = Refit() if number < FEWEST_TO_TRAIN_ALL else Full()
    say(
        f"auto takes {strategy.name}: no structures are held out by which strategies could be "
        f"compared, and {number} different ones are "
        f"{'few' if number < FEWEST_TO_TRAIN_ALL else 'enough to train all parameters'}"
    )
    return Choice(strategy, strategy.learn(run), strategy.name, [])


def try_all(run: FineTuning, seconds: float) -> tuple[list[Tried], list[Candidate]]:
    """Candidates that have learned, and all of them, the cheapest first."""
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
            # the user has asked for an end
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
    """The strategy after training, or why it was not trained."""
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
    """An estimate of the time of a training, from its first steps on a copy."""
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
    """What became of a candidate."""
    if candidate.shares is None:
        return f"  {candidate.name}: {candidate.remark}"
    remark = f" ({candidate.remark}: worse than step 0)" if candidate.remark else ""
    return (
        f"  {candidate.name}: {_errors(candidate.mae)}, score {candidate.score:.3g}, "
        f"{candidate.minutes:.1f} minutes{remark}"
    )


def _errors(mae: Mapping[str, float | None]) -> str:
    """Errors by label as text."""
    found = []
    for name, value in mae.items():
        if value is not None:
            label = LABELS[name]
            found.append(f"{label.display_scale * value:.4g} {label.display_unit}")
    return ", ".join(found)
