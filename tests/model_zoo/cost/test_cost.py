"""Counted costs agree with torch's profiler and with what the formulas say."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.cost.commands import machine_rates
from evenfield.model_zoo.cost.cost import TILE_SIZE, count, per_atom_and_edge
from evenfield.model_zoo.network.tiles import Tiles
from evenfield.model_zoo.potential.derivatives import energies_and_slopes


CONFIG = PotentialConfig(channels=8, l_max=2, readout_size=8, radial_hidden=8)


def test_flops_are_those_that_the_profiler_counts():
    potential = Potential(CONFIG).eval()
    index = torch.arange(6).repeat_interleave(2 * TILE_SIZE)
    tiles = Tiles(index.flip(0), torch.arange(6).repeat_interleave(2), torch.zeros(0), TILE_SIZE)
    vectors = torch.randn(len(index), 3)
    numbers = torch.arange(1, 7)
    with profile(
        activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True
    ) as profiler:
        energies_and_slopes(
            potential, numbers, torch.zeros_like(numbers), vectors, tiles, keep_graph=False
        )
    products = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
    flops = sum(event.flops for event in profiler.key_averages() if event.key in products)
    assert count(potential, 6, 12, training=False).flops == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("training", [False, True])
def test_cost_is_linear_in_atoms_and_edges(training):
    atom, edge = per_atom_and_edge(CONFIG, torch.float32, training=training)
    whole = count(Potential(CONFIG), 1500, 4000, training=training)
    for name in ("flops", "traffic", "memory"):
        expected = 1500 * getattr(atom, name) + 4000 * TILE_SIZE * getattr(edge, name)
        assert getattr(whole, name) == pytest.approx(expected, rel=0.03)


def test_float64_moves_and_holds_twice_as_much():
    single, double = (
        per_atom_and_edge(CONFIG, dtype, training=True) for dtype in (torch.float32, torch.float64)
    )
    for one, two in zip(single, double, strict=True):
        assert two.flops == one.flops
        assert two.memory == pytest.approx(2 * one.memory, rel=0.1)


def test_command_prints_the_table_and_names_a_wrong_key():
    result = CliRunner().invoke(app, ["model", "cost", "channels=4", "--memory", "1"])
    assert result.exit_code == 0, result.output
    assert "parameters" in result.output and "in 1 GB" in result.output
    wrong = CliRunner().invoke(app, ["model", "cost", "chanels=4"])
    assert "unknown key 'chanels'" in str(wrong.exception)


def test_command_places_the_model_under_this_machines_roofline(monkeypatch: pytest.MonkeyPatch):
    for products, moves, bound in ((1e9, 1e15, "the matrix products"), (1e15, 1e9, "memory")):
        monkeypatch.setattr(
            "evenfield.model_zoo.cost.commands.machine_rates", lambda _, r=(products, moves): r
        )
        result = CliRunner().invoke(app, ["model", "cost", "channels=4", "--measure"])
        assert result.exit_code == 0, result.output
        assert result.output.count(f"bound by {bound}") == 2  # inference and training
    monkeypatch.undo()
    assert all(rate > 1e7 for rate in machine_rates(torch.float32, seconds=0.01))
