"""Low-rank adapters: zero at the start, equivariant when trained, the same once merged."""

from __future__ import annotations

import pytest
import torch

from evenfield.finetune.gradient.lora import LowRank, add_adapters, merge_adapters
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.package.folder import load_model, save_model
from evenfield.model_zoo.package.record import ModelRecord
from evenfield.testing import PotentialConformance
from evenfield.testing.conformance import check_save_and_load_are_bit_identical
from evenfield.testing.structures import batch_of, crystal


def adapted(dtype: torch.dtype = torch.float32) -> Potential:
    """A potential with adapters that are not zero, as after training."""
    config = PotentialConfig(channels=8, cutoff=4.5, readout_size=16, radial_hidden=16)
    potential = Potential(config).to(dtype)
    add_adapters(potential, rank=2)
    with torch.no_grad():
        for module in potential.modules():
            if isinstance(module, LowRank):
                module.up.normal_(std=0.3)
    return potential


class TestAdapted(PotentialConformance):
    # an adapted potential is merged before it is saved
    left_out = (check_save_and_load_are_bit_identical,)

    def potential(self) -> Potential:
        return adapted()


def forces(potential: Potential) -> torch.Tensor:
    dtype = next(potential.parameters()).dtype
    return potential.eval()(batch_of([crystal()], 4.5, dtype)).forces.detach().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_equals_adapted_and_is_a_potential_like_any_other(dtype, tmp_path):
    potential = adapted(dtype)
    names = set(Potential(potential.config).state_dict())
    before = forces(potential)
    merge_adapters(potential)
    assert (forces(potential) - before).abs().max() < 1e-6 * before.abs().max()
    assert set(potential.state_dict()) == names
    assert all(p.requires_grad for p in potential.parameters())
    save_model(tmp_path / "m", potential, ModelRecord(name="m", elements={"default": ["Na", "Cl"]}))
    assert torch.equal(forces(load_model(tmp_path / "m")[0]), forces(potential))


def test_fresh_adapters_change_nothing_and_alone_learn():
    potential = Potential(PotentialConfig(channels=8, cutoff=4.5))
    before, total = forces(potential), sum(p.numel() for p in potential.parameters())
    adapters = add_adapters(potential, rank=2)
    assert torch.equal(forces(potential), before)
    learning = [p for p in potential.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in adapters}
    assert sum(p.numel() for p in learning) < 0.5 * total
    loss = potential.train()(batch_of([crystal()], 4.5, torch.float32)).forces.square().sum()
    loss.backward()
    assert (
        sum(float(p.grad.abs().sum()) > 0 for p in adapters) >= len(adapters) // 2 - 4
    )  # downs wait for the ups
