"""Readouts that levels of theory share: gradients, starts, and what a level without data learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain import run
from evenfield.pretrain.loop.level_sharing import LevelSharingConfig, share_readouts
from evenfield.pretrain.loop.loss import LossConfig, label_counts
from evenfield.pretrain.loop.train_module import TrainModule

from optimizer_steps import LEVELS, batch_of, new_potential


def sharing(strength: float) -> LevelSharingConfig:
    return LevelSharingConfig(levels=list(LEVELS), strength=strength)


def readout_gradients(
    structures: list[Structure], strength: float | None
) -> dict[str, torch.Tensor]:
    potential = new_potential()
    # both cases start alike, so that only the gradients differ
    share_readouts(potential, sharing(strength or 1.0))
    if strength is None:
        potential.readout.weight._backward_hooks.clear()
        potential.readout.element_weight._backward_hooks.clear()
    train_module = TrainModule(potential, LossConfig())
    batch = batch_of(structures)
    train_module(batch, lambda: label_counts(batch)).backward()
    return {
        "weight": potential.readout.weight.grad,
        "element_weight": potential.readout.element_weight.grad,
    }


@pytest.fixture(scope="module")
def one_level(train_structures) -> list[Structure]:
    return [s for s in train_structures if s.level_of_theory == LEVELS[0]][:3]


@pytest.fixture(scope="module")
def both_levels(one_level, train_structures) -> list[Structure]:
    return one_level + [s for s in train_structures if s.level_of_theory == LEVELS[1]][:3]


def test_every_head_gets_the_gradients_of_all(both_levels) -> None:
    apart = readout_gradients(both_levels, None)
    shared = readout_gradients(both_levels, 0.5)
    for name, own in apart.items():
        assert own.abs().sum(tuple(range(1, own.ndim))).min() > 0, "both levels are in the batch"
        expected = own + 0.5 * own.sum(0, keepdim=True)
        assert torch.allclose(shared[name], expected, rtol=1e-5, atol=1e-7)


def test_a_level_that_is_not_in_the_batch_learns_from_the_others(one_level) -> None:
    apart = readout_gradients(one_level, None)["weight"]
    shared = readout_gradients(one_level, 1.0)["weight"]
    assert not apart[1].any()
    assert torch.allclose(shared[1], apart[0])
    assert torch.allclose(shared[0], 2 * apart[0])


def test_levels_that_share_start_alike() -> None:
    potential = new_potential()
    potential.scale.copy_(torch.tensor([1.0, 7.0]))
    assert not torch.equal(potential.readout.weight[0], potential.readout.weight[1])
    share_readouts(potential, sharing(1.0))
    assert torch.equal(potential.readout.weight[0], potential.readout.weight[1])
    assert potential.scale.tolist() == [5.0, 5.0]  # the root of the mean square


def test_nothing_changes_without_levels() -> None:
    potential = new_potential()
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    share_readouts(potential, LevelSharingConfig())
    assert all(torch.equal(value, before[name]) for name, value in potential.state_dict().items())
    assert not potential.readout.weight._backward_hooks


def test_unknown_levels_are_named_before_anything_is_written(run_config) -> None:
    config = run_config(level_sharing={"levels": [LEVELS[0], "B3LYP"]})
    with pytest.raises(EvenfieldError, match="no training structure is at B3LYP"):
        run.pretrain(config, quiet=True)
    assert not Path(config.out).exists()


@pytest.mark.parametrize("levels", [["EMT"], ["EMT", "EMT"]])
def test_one_level_shares_nothing(levels: list[str]) -> None:
    with pytest.raises(ValidationError, match="two or more different levels"):
        LevelSharingConfig(levels=levels)


def test_a_run_shares_what_its_config_says(run_config) -> None:
    weights = []
    for name, levels in {"apart": [], "shared": list(LEVELS)}.items():
        config = run_config(name, level_sharing={"levels": levels})
        model = load(run.pretrain(config, quiet=True))
        weights.append(model.potential.readout.weight.detach())
    apart, shared = weights
    # one step moves all heads of a run that shares by nearly the same
    assert (apart[0] - apart[1]).abs().mean() > 10 * (shared[0] - shared[1]).abs().mean() > 0
