"""Weights set aside come back bit for bit, unless the change is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenfield.model_zoo.potential.weights_aside import (
    copied_weights,
    interpolated,
    put_weights,
    weights_aside,
)


@pytest.fixture
def module() -> nn.Module:
    """A frozen layer, a layer that learns, and a buffer."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network[0].requires_grad_(False)
    return network


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def spoil(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)


def test_replacement_is_there_inside_the_block_only(module):
    before = copied_weights(module)
    replacement = {"0.weight": torch.full((4, 3), 7.0)}
    with weights_aside(module, replacement) as aside:
        assert (module[0].weight == 7).all()
        assert torch.equal(module[1].weight, before["1.weight"])
        assert equal(aside.weights, before)
    assert equal(copied_weights(module), before)


def test_change_is_undone_after_an_error_too(module):
    before = copied_weights(module)
    with pytest.raises(KeyError), weights_aside(module):
        spoil(module)
        raise KeyError
    assert equal(copied_weights(module), before)


def test_change_that_is_kept_stays(module):
    before = copied_weights(module)
    with weights_aside(module) as aside:
        spoil(module)
        aside.keep_changes()
    assert torch.equal(module[0].weight, before["0.weight"] + 1)


def test_trainable_weights_alone_are_those_that_learn(module):
    assert set(copied_weights(module, trainable=True)) == {"1.weight", "1.bias"}


def test_interpolation_keeps_the_bits_of_both_ends(module):
    start = copied_weights(module, trainable=True)
    end = {name: value + 2 for name, value in start.items()}
    assert interpolated(start, end, 0.0) is start
    assert interpolated(start, end, 1.0) is end
    put_weights(module, interpolated(start, end, 0.25))
    assert torch.allclose(module[1].bias, start["1.bias"] + 0.5)
