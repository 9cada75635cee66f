"""Core repulsion: closed forms, slopes, the switch, and dimers pressed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.potential.repulsion import REACH, SMALLEST, Repulsion
from evenfield.testing.structures import batch_of


PAIRS = [(1, 1), (1, 8), (6, 6), (14, 14), (29, 79), (55, 9), (92, 92), (118, 1)]
E2_OVER_4_PI_EPS0 = 14.3996454  # eV A, CODATA 2014


def of_pair(distance: float | np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Energy in eV and slope dE/dr in eV/A of one of the two edges, float64."""
    # along no axis, so that a slope with swapped components cannot pass
    direction = np.array([0.6, 0.0, -0.8])
    vectors = torch.from_numpy(np.multiply.outer(np.atleast_1d(distance), direction))
    num_edges = len(vectors)
    first_ends = torch.full((num_edges,), first)
    second_ends = torch.full((num_edges,), second)
    head = torch.zeros(num_edges, dtype=torch.long)

    repulsion = Repulsion(5.0).double()
    energy, slope = repulsion(vectors, first_ends, second_ends, head)
    along = slope.detach().numpy() @ direction
    return energy.detach().numpy(), along


def pair_energy(distance: float, first: int, second: int) -> float:
    """Energy in eV of a pair, which has two edges."""
    energy, _ = of_pair(distance, first, second)
    return 2 * energy.item()


def sum_of_radii(pair: tuple[int, int]) -> float:
    """Where the untrained repulsion of a pair ends, in A."""
    first, second = pair
    return REACH * float(covalent_radii[first] + covalent_radii[second])


@pytest.mark.parametrize("pair", PAIRS)
def test_naked_nuclei_repel_by_coulombs_law(pair):
    first, second = pair
    distance = 1e-5
    coulomb = E2_OVER_4_PI_EPS0 * first * second / distance
    assert pair_energy(distance, first, second) == pytest.approx(coulomb, rel=1e-3)


def test_screening_at_one_screening_length():
    # at x = r / a = 1 the universal function is
    # 0.18175 e^-3.1998 + 0.50986 e^-0.94229 + 0.28022 e^-0.4029
    # + 0.02817 e^-0.20162 = 0.4164; a(Si, Si) = 0.8854 * 0.529177 A / (2 * 14^0.23) = 0.12766 A
    distance = 0.12766
    unscreened = E2_OVER_4_PI_EPS0 * 14**2 / distance
    screening = pair_energy(distance, 14, 14) / unscreened
    assert screening == pytest.approx(0.4164, rel=1e-3)


@pytest.mark.parametrize("pair", PAIRS)
def test_it_ends_smoothly_within_the_cutoff(pair):
    first, second = pair
    reach = min(5.0, sum_of_radii(pair))
    beyond = np.linspace(reach + 1e-9, 5.0, 50)
    energy, slope = of_pair(beyond, first, second)
    assert (energy == 0).all()
    assert (slope == 0).all()

    # the bounds are relative: energies of these pairs differ by four orders of magnitude
    energy_halfway, _ = of_pair(0.5 * reach, first, second)
    scale = energy_halfway.item()
    near = reach * (1 - np.array([2e-4, 1e-4]))
    _, slope = of_pair(near, first, second)
    assert np.abs(slope).max() < 1e-5 * scale / reach

    # the curvature falls linearly to zero
    curvature = (slope[1] - slope[0]) / (near[1] - near[0])
    assert abs(curvature) < 0.05 * scale / reach**2


@pytest.mark.parametrize("pair", PAIRS)
def test_slope_is_the_derivative(pair):
    distance = np.linspace(0.2, 2.4, 12)
    _, slope = of_pair(distance, *pair)
    step = 1e-6
    farther, _ = of_pair(distance + step, *pair)
    nearer, _ = of_pair(distance - step, *pair)
    difference = (farther - nearer) / (2 * step)

    # beyond the reach both are zero, where a relative bound says nothing
    rounding = 1e-9 * np.abs(slope).max()
    assert slope == pytest.approx(difference, rel=1e-6, abs=rounding)


def test_radii_are_learned_and_those_of_absent_elements_stay():
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=8))
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 0.9]])
    batch = batch_of([molecule], 5.0, torch.float32)
    out = potential.train()(batch)
    loss = (out.forces**2).sum()
    loss.backward()

    gradient = potential.repulsion.log_factor.grad
    assert gradient[0, [6, 8]].abs().min() > 0
    assert gradient.count_nonzero() == 2


def test_no_radius_is_driven_to_zero():
    """Where it would be shorter than all distances, and so beyond any gradient's reach."""
    repulsion = Repulsion(5.0)
    with torch.no_grad():
        repulsion.log_factor[0, 28] = -20.0
    least = SMALLEST * REACH * covalent_radii[28]
    assert repulsion.radii()[0, 28].item() == pytest.approx(least, rel=1e-6)


def test_a_radius_beyond_all_bounds_leaves_gradients_finite():
    """float32 has no exp(90): the gradient of every radius was NaN, in every step from there on."""
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=8)).train()
    batch = batch_of([Atoms("CO", [[0, 0, 0], [0, 0, 0.9]])], 5.0, torch.float32)
    with torch.no_grad():
        potential.repulsion.log_factor[0, 28] = 90.0
        potential.repulsion.log_factor[0, 8] = 90.0
    potential(batch).forces.square().sum().backward()
    assert potential.repulsion.radii().isfinite().all()
    for name, parameter in potential.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pair", PAIRS)
def test_dimers_pressed_to_a_fifth_of_an_angstrom_push_back_harder_all_the_way(pair):
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=8)).eval()
    # at half the reach the network, which is untrained, may be stronger than the repulsion
    farthest = max(0.3, 0.5 * sum_of_radii(pair))
    dimers = []
    for distance in np.arange(0.2, farthest, 0.02):
        dimers.append(Atoms(pair, [[0, 0, 0], [distance, 0, 0]]))

    out = potential(batch_of(dimers, 5.0, torch.float32))
    energy = out.energy.detach().numpy()
    # on the second atom of each dimer, away from the first
    push = out.forces.detach().numpy()[1::2, 0]
    assert (np.diff(energy) < 0).all()
    assert np.isfinite(push).all()
    assert (push > 0).all()


def test_switch():
    torch.manual_seed(0)
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 0.7]])
    bare = Potential(PotentialConfig(channels=8, repulsion=False)).double().eval()
    full = Potential(PotentialConfig(channels=8)).double().eval()
    assert full.repulsion.log_factor.requires_grad
    assert not bare.repulsion.log_factor.requires_grad

    full.load_state_dict(bare.state_dict())
    batch = batch_of([atoms], 5.0, torch.float64)
    added = full(batch).energy - bare(batch).energy
    assert added.item() == pytest.approx(pair_energy(0.7, 6, 8), rel=1e-12)
