"""The switches at both ends of an edge: smooth, and silent where they should be."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.network.architectures import ARCHITECTURES
from evenfield.model_zoo.network.gaunt.config import GauntConfig
from evenfield.model_zoo.network.radial import CoreSwitch
from evenfield.testing.structures import batch_of


SILENT_BELOW = GauntConfig().silent_below
WHOLE_FROM = GauntConfig().whole_from
PAIR = (28, 8)
TOUCHING = float(covalent_radii[28] + covalent_radii[8])


def switch(shares: torch.Tensor) -> torch.Tensor:
    """The switch (E,) of nickel and oxygen at shares (E,) of the sum of their radii."""
    edges = len(shares)
    first = torch.zeros(edges, dtype=torch.long)
    values: torch.Tensor = CoreSwitch(SILENT_BELOW, WHOLE_FROM)(
        (shares * TOUCHING).unsqueeze(1), torch.tensor(PAIR), first, first + 1
    )
    return values.squeeze(1)


def test_the_core_switch_leaves_bonds_alone_to_the_last_digit():
    shares = torch.linspace(WHOLE_FROM + 1e-9, 3.0, 100, dtype=torch.float64)
    assert (switch(shares) == 1.0).all()
    assert (switch(torch.linspace(0.0, SILENT_BELOW, 50, dtype=torch.float64)) == 0.0).all()


def test_the_core_switch_has_two_continuous_derivatives():
    between = torch.linspace(
        SILENT_BELOW + 0.01, WHOLE_FROM - 0.01, 7, dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(switch, between)
    assert torch.autograd.gradgradcheck(switch, between)
    for end in (SILENT_BELOW, WHOLE_FROM):
        sides = torch.tensor([end - 1e-6, end + 1e-6], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(switch(sides).sum(), sides, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), sides)
        assert slope[0].item() == pytest.approx(slope[1].item(), abs=1e-6)
        # its third derivative is 60 / 0.2^3
        assert curvature[0].item() == pytest.approx(curvature[1].item(), abs=0.02)


@pytest.mark.parametrize(("silent_below", "whole_from"), [(SILENT_BELOW, WHOLE_FROM), (0.4, 0.6)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_says_nothing_of_cores_that_overlap(architecture, silent_below, whole_from):
    """It answers as for free atoms, so the core repulsion is all there is."""
    torch.manual_seed(0)
    config = PotentialConfig(
        architecture=architecture,
        channels=8,
        repulsion=False,
        silent_below=silent_below,
        whole_from=whole_from,
    )
    potential = Potential(config).double().eval()
    distances = [0.99 * silent_below * TOUCHING, 1.0 * TOUCHING, 20.0]
    dimers = [Atoms(PAIR, [[0, 0, 0], [0, 0, distance]]) for distance in distances]
    energy = potential(batch_of(dimers, config.cutoff, torch.float64)).energy
    overlapping, bonded, apart = energy.tolist()
    assert overlapping == pytest.approx(apart, abs=1e-12)
    assert abs(bonded - apart) > 1e-4


def test_a_core_switch_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match=r"silent_below=0.5 is not below whole_from=0.5: lower it"):
        GauntConfig(silent_below=0.5)
