"""`strategy=auto`: which candidate is chosen, what is told, and what it may cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.finetune.auto import choose as choosing
from evenfield.finetune.auto.choose import Candidate, best_of, together
from evenfield.finetune.closed_form.strategy import Refit, WideRefit
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.gradient.strategies.full import Full
from evenfield.finetune.heads import with_head
from evenfield.finetune.run import FineTuned, finetune
from evenfield.finetune.safety.guard import HeldOut
from evenfield.finetune.save import facts
from evenfield.finetune.set_up import set_up
from evenfield.finetune.state import FineTuning
from evenfield.finetune.target import Target, different, hold_out, open_target
from evenfield.pretrain.errors import TrainingError


GENTLE = GradientConfig(max_steps=4, evaluate_every=4, learning_rate=1e-4)
# the wide refit takes most of the time of these tests, and is compared once
NARROW = FineTuneConfig(gradient=GENTLE, refit={"random_features": 0})
SHORT = FineTuneConfig(
    gradient=GENTLE,
    refit={"random_features": 6},
)


def candidate(name: str, *shares: float) -> Candidate:
    return Candidate(name, shares=np.array(shares))


# --- the rule


def test_the_lowest_score_wins_where_it_is_clear():
    clear = [candidate("refit", 0.5, 0.5, 0.5), candidate("full", 0.1, 0.12, 0.1)]
    assert best_of(clear) == 1
    assert best_of(clear[::-1]) == 0


def test_within_noise_what_was_better_before_is_taken():
    """The sums are the same in both cases, and only one of them says the same thing thrice."""
    noisy = [candidate("refit", 0.0, 0.9, 0.42), candidate("full", 0.5, 0.5, 0.5)]
    same = [candidate("refit", 0.44, 0.44, 0.44), candidate("full", 0.5, 0.5, 0.5)]
    assert noisy[0].score == pytest.approx(same[0].score)
    assert best_of(noisy) == 1 and best_of(same) == 0


def test_a_gain_too_small_to_count_is_none():
    """Although it is the same in every structure."""
    less = 0.5 * (1 - 0.5 * choosing.LEAST_GAIN)
    cheap = candidate("refit", less, less)
    assert best_of([cheap, candidate("full", 0.5, 0.5)]) == 1
    # what was undone has nothing to be preferred for
    undone = replace(candidate("full", 0.5, 0.5), remark=choosing.UNDONE)
    assert best_of([cheap, undone]) == 0


def test_a_candidate_that_was_not_tried_is_never_taken():
    untried = Candidate("full after wide", remark="not tried")
    tried = [candidate("refit", 0.5, 0.5, 0.5), untried, candidate("full", 0.1, 0.1, 0.1)]
    assert best_of(tried) == 2
    assert together([tried[0], untried]) is untried


def test_what_several_divisions_say_is_put_together():
    one = replace(candidate("full", 0.1, 0.3), mae={"forces": 0.1, "energy": None}, minutes=1.0)
    other = replace(candidate("full", 0.5, 0.7), mae={"forces": 0.3, "energy": None}, minutes=2.0)
    both = together([one, other])
    assert both.score == pytest.approx((one.score + other.score) / 2)
    assert both.mae == {"forces": pytest.approx(0.2), "energy": None}
    assert both.minutes == 3.0 and both.divisions == 2


@pytest.mark.parametrize(
    ("refit", "minutes", "divisions"),
    [
        ((0.1, 0.1, 0.1), 60, 1),  # clear
        ((0.0, 0.9, 0.42), 60, choosing.MOST_DIVISIONS),  # within noise
        ((0.0, 0.9, 0.42), 0, 1),  # within noise, and no time
    ],
)
def test_structures_are_divided_again_while_noise_decides(
    model, target, monkeypatch, refit, minutes, divisions
):
    held_out = []

    def tried(run, _seconds):
        held_out.append({structure.structure_id for structure in run.target.valid})
        return [], [candidate("refit", *refit), candidate("full", 0.5, 0.5, 0.5)]

    monkeypatch.setattr(choosing, "try_all", tried)
    config = NARROW.model_copy(update={"auto": NARROW.auto.model_copy(update={"minutes": minutes})})
    run = FineTuning(model, target, config, quiet=True)
    run.held_out = HeldOut(run.potential, target.valid)
    _, candidates = choosing.compare(run)
    assert len(held_out) == candidates[0].divisions == divisions
    # other structures each time
    assert len({frozenset(names) for names in held_out}) == divisions


# --- on a toy


@pytest.fixture(scope="module")
def target(sets) -> Target:
    """Few structures with an element that is new to the model, two of them held out."""
    found = open_target(sets["platinum"], num_structures=10, seed=0, valid_share=0.2)
    assert found.valid
    return replace(found, test=found.test[:4])


@pytest.fixture(scope="module")
def compared(model, target) -> tuple[FineTuned, list[str]]:
    """A fine-tuning by `auto`, and what it said."""
    lines: list[str] = []
    return finetune(model, target, SHORT, say=lines.append), lines


def test_every_candidate_is_told_and_the_choice_is_the_best(compared):
    result, lines = compared
    choice = result.choice
    assert [one.name for one in choice.candidates] == ["refit", "wide", "full after wide", "full"]
    for one in choice.candidates:
        (line,) = [text for text in lines if text.startswith(f"  {one.name}: ")]
        assert f"{one.mae['forces']:.4g} eV/A" in line and "minutes" in line
    assert lines[-1] == f"auto takes {choice.name}"
    assert choice.candidates[best_of(choice.candidates)].name == choice.name
    assert result.strategy in choice.name and result.strategy in result.stages


def test_the_choice_is_not_worse_than_step_0_in_any_error(compared):
    result, _ = compared
    before, after = result.held_out_scores
    assert after < before < np.inf
    for one in result.choice.candidates:
        # forces and energies are each at most 1 of their bound
        assert one.score <= 2 * (1 + 1e-6)


def test_the_model_records_what_was_compared(compared, target):
    result, _ = compared
    found = facts(result)["auto"]
    assert found["chosen"] in [one["name"] for one in found["candidates"]]
    assert len(found["candidates"][0]["shares"]) == len(target.valid)


def test_what_a_candidate_does_leaves_no_trace_in_the_next(model, target):
    """The wide refit is given to a run of its own: a plain one after it has the same bits."""
    config = FineTuneConfig(strategy="refit", refit={"random_features": 6})
    alone = FineTuning(model, target, config, quiet=True)
    set_up(alone, trust_units=False)
    before = alone.branch()
    WideRefit().learn(alone.branch())
    for run in (alone, before):
        Refit().learn(run)
    assert alone.sizes == before.sizes == ()
    for name, value in alone.potential.state_dict().items():
        assert torch.equal(value, before.potential.state_dict()[name]), name


def test_a_training_that_would_take_too_long_is_left_out_and_named(model, target, monkeypatch):
    monkeypatch.setattr(choosing, "_seconds_of", lambda *_: 600.0)
    lines: list[str] = []
    config = NARROW.model_copy(update={"auto": NARROW.auto.model_copy(update={"minutes": 8})})
    result = finetune(model, target, config, say=lines.append)
    assert result.choice.name in ("refit", "wide") and result.gradient is None
    assert "  full: not tried: would take about 10.0 minutes; auto.minutes leaves 8.0" in lines


def test_a_training_that_explodes_leaves_the_other_candidates(model, target, monkeypatch):
    def explodes(*_, **__):
        raise TrainingError("the weights are no longer finite")

    monkeypatch.setattr(choosing, "_seconds_of", lambda *_: 0.0)
    monkeypatch.setattr(Full, "train", explodes)
    lines: list[str] = []
    result = finetune(model, target, NARROW, say=lines.append)
    assert result.choice.name in ("refit", "wide")
    assert "  full: failed: the weights are no longer finite" in lines


# --- what it is compared by


def test_shares_of_held_out_structures_add_up_to_the_score(model, target):
    held_out = HeldOut(model.potential, target.valid)
    other = with_head(model.potential, "EMT")
    with torch.no_grad():
        other.readout.weight[0] *= 1.01
    _, total = held_out.rank(other)
    assert held_out.shares(other).sum() == pytest.approx(total, rel=1e-5)
    # a label that one structure lacks is missing in its share alone
    bare = [target.valid[0].with_labels(energy=None, forces=None, stress=None)]
    held_out = HeldOut(model.potential, [*bare, *target.valid[1:]])
    assert held_out.shares(other)[0] == 0
    assert held_out.shares(other).sum() == pytest.approx(held_out.rank(other)[1], rel=1e-5)


def test_near_copies_are_one_structure_and_stay_together(structures):
    """Barely moved, so that they are no copies to the last digit."""
    own = structures[:10]
    shift = np.array([0.0, 0.0, 0.01])
    moved = [replace(s, positions=s.positions + shift) for s in own]
    mixed = [*own, *moved]
    assert len(different(mixed)) == len(different(own))
    for seed in range(5):
        train, valid = hold_out(mixed, 0.2, seed)
        assert valid
        held_out = {len(group) for group in different(valid)}
        assert all(number >= 2 for number in held_out)
        assert len(different(train)) + len(different(valid)) == len(different(mixed))
