"""Counted costs agree with torch's profiler and with what the formulas say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.cost.commands import machine_rates
from evenfield.model_zoo.cost.cost import (
    TILE_SIZE,
    CostCounter,
    count,
    of_charges,
    per_atom_and_edge,
)
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


CHARGED = PotentialConfig(channels=4, readout_size=8, radial_hidden=8, charges=True)


@pytest.mark.parametrize("training", [False, True])
def test_cost_with_charges_is_that_of_a_run(training):
    """Energies, forces and gradients of 64 ions, counted while they are computed."""
    pytest.importorskip("torchpme", reason="comes with the extra `physics`")
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    batch = Batch.from_structure(Structure.from_atoms(atoms, "PBE", "salt"), CHARGED.cutoff)
    potential = Potential(CHARGED).train(training)
    num_slots = len(potential.edge_vectors(batch)[1].sender)
    with CostCounter() as counter, torch.set_grad_enabled(training):
        out = potential(batch)
        if training:
            loss = out.energy.sum() + out.forces.square().sum()
            torch.autograd.grad(loss, list(potential.parameters()), allow_unused=True)

    atom, edge = per_atom_and_edge(CHARGED, torch.float32, training=training)
    volume = atoms.get_volume() / len(atoms)
    charge = of_charges(CHARGED, torch.float32, len(atoms), volume, training=training)
    for name in ("flops", "traffic", "memory"):
        of_atom = getattr(atom, name) + getattr(charge, name)
        expected = len(atoms) * of_atom + num_slots * getattr(edge, name)
        assert expected == pytest.approx(getattr(counter, name), rel=0.15), name


def test_cost_of_charges_grows_with_the_crystal_and_not_without_charges():
    pytest.importorskip("torchpme", reason="comes with the extra `physics`")
    settings = {"training": True, "volume": 14.0}
    small = of_charges(CHARGED, torch.float32, 100, **settings)
    large = of_charges(CHARGED, torch.float32, 200, **settings)
    assert large.memory == pytest.approx(2 * small.memory, rel=0.02)
    assert of_charges(CONFIG, torch.float32, 100, **settings).memory == 0

    words = ["model", "cost", "channels=4", "--memory", "1", "charges=true", "--atoms", "100"]
    found = CliRunner().invoke(app, words).output
    assert "the charge of" in found
    # the charges of so large a crystal take most of the memory
    neighbours = 40
    volume = 4 / 3 * np.pi * 5.0**3 / neighbours
    config = PotentialConfig(channels=4, charges=True)
    of_atom = of_charges(config, torch.float32, 100, volume, training=True).memory
    (edges,) = re.findall(r"at most ([\d,]+) edges", found)
    assert 0.5 < int(edges.replace(",", "")) * of_atom / neighbours / 1e9 < 1.0


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
