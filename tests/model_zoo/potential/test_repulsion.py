"""Core repulsion: closed forms, slopes, the switch, and dimers pressed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.potential.repulsion import REACH, Repulsion
from evenfield.testing.structures import batch_of


PAIRS = [(1, 1), (1, 8), (6, 6), (14, 14), (29, 79), (55, 9), (92, 92), (118, 1)]


def of_pair(distance: float | np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Energy in eV and slope dE/dr in eV/A of one of the two edges, float64."""
    vectors = np.multiply.outer(np.atleast_1d(distance), [0.6, 0.0, -0.8])
    ends = (np.full(len(vectors), value) for value in (first, second, 0))
    energy, slope = Repulsion(5.0).double()(*map(torch.from_numpy, (vectors, *ends)))
    return energy.detach().numpy(), slope.detach().numpy() @ [0.6, 0.0, -0.8]


@pytest.mark.parametrize("pair", PAIRS)
def test_naked_nuclei_repel_by_coulombs_law(pair):
    distance = 1e-5
    coulomb = (
        14.3996454 * pair[0] * pair[1] / distance
    )  # eV, CODATA 2014: e^2 / (4 pi eps0) in eV A
    assert 2 * of_pair(distance, *pair)[0].item() == pytest.approx(coulomb, rel=1e-3)


def test_screening_at_one_screening_length():
    # at x = r / a = 1 the universal function is
    # 0.18175 e^-3.1998 + 0.50986 e^-0.94229 + 0.28022 e^-0.4029
    # + 0.02817 e^-0.20162 = 0.4164; a(Si, Si) = 0.8854 * 0.529177 A / (2 * 14^0.23) = 0.12766 A
    distance = 0.12766
    free = 14.3996454 * 14**2 / distance
    assert 2 * of_pair(distance, 14, 14)[0].item() / free == pytest.approx(0.4164, rel=1e-3)


@pytest.mark.parametrize("pair", PAIRS)
def test_it_ends_smoothly_within_the_cutoff(pair):
    reach = min(5.0, REACH * (covalent_radii[pair[0]] + covalent_radii[pair[1]]))
    energy, slope = of_pair(np.linspace(reach + 1e-9, 5.0, 50), *pair)
    assert (energy == 0).all() and (slope == 0).all()
    scale = of_pair(0.5 * reach, *pair)[0].item()
    near = reach * (1 - np.array([2e-4, 1e-4]))
    _, slope = of_pair(near, *pair)
    assert np.abs(slope).max() < 1e-5 * scale / reach
    curvature = (slope[1] - slope[0]) / (near[1] - near[0])
    assert abs(curvature) < 0.05 * scale / reach**2  # falls linearly to zero


@pytest.mark.parametrize("pair", PAIRS)
def test_slope_is_the_derivative(pair):
    distance = np.linspace(0.2, 2.4, 12)
    _, slope = of_pair(distance, *pair)
    step = 1e-6
    difference = (of_pair(distance + step, *pair)[0] - of_pair(distance - step, *pair)[0]) / (
        2 * step
    )
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9 * np.abs(slope).max())


def test_radii_are_learned_and_those_of_absent_elements_stay():
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=8))
    batch = batch_of([Atoms("CO", [[0, 0, 0], [0, 0, 0.9]])], 5.0, torch.float32)
    out = potential.train()(batch)
    (out.forces**2).sum().backward()
    gradient = potential.repulsion.log_factor.grad
    assert gradient[0, [6, 8]].abs().min() > 0
    assert gradient.count_nonzero() == 2


@pytest.mark.parametrize("pair", PAIRS)
def test_dimers_pressed_to_a_fifth_of_an_angstrom_push_back_harder_all_the_way(pair):
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=8)).eval()
    reach = REACH * (covalent_radii[pair[0]] + covalent_radii[pair[1]])
    distances = np.arange(0.2, max(0.3, 0.5 * reach), 0.02)
    out = potential(
        batch_of([Atoms(pair, [[0, 0, 0], [r, 0, 0]]) for r in distances], 5.0, torch.float32)
    )
    energy = out.energy.detach().numpy()
    pull = out.forces.detach().numpy()[1::2, 0]  # on the second atom, away from the first
    assert (np.diff(energy) < 0).all()
    assert (pull > 0).all() and np.isfinite(pull).all()


def test_switch():
    torch.manual_seed(0)
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 0.7]])
    bare = Potential(PotentialConfig(channels=8, repulsion=False)).double().eval()
    full = Potential(PotentialConfig(channels=8)).double().eval()
    assert full.repulsion.log_factor.requires_grad and not bare.repulsion.log_factor.requires_grad
    full.load_state_dict(bare.state_dict())
    batch = batch_of([atoms], 5.0, torch.float64)
    added = (full(batch).energy - bare(batch).energy).item()
    assert added == pytest.approx(2 * of_pair(0.7, 6, 8)[0].item(), rel=1e-12)
