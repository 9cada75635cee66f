"""Surface hopping: Landau-Zener in closed form, kept energy, and refused hops."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units

from evenfield.model_zoo.heads.states import States
from evenfield.simulation.surface_hopping import (
    HBAR,
    HoppingError,
    _target,
    surface_hopping,
)


FORCE = 1.0  # eV/A, the slope of each diabatic curve
MASS = 100.0


class Crossing:
    """Two straight lines along x that cross at 0, with a constant coupling."""

    def __init__(self, coupling: float) -> None:
        self.coupling = coupling

    def __call__(self, atoms: Atoms) -> States:
        x = atoms.positions[0, 0]
        matrix = np.array([[FORCE * x, self.coupling], [self.coupling, -FORCE * x]])
        slope = np.diag([FORCE, -FORCE])
        energies, vectors = np.linalg.eigh(matrix)
        couplings = np.zeros((2, 2, 1, 3))
        couplings[:, :, 0, 0] = vectors.T @ slope @ vectors
        forces = -np.stack([couplings[k, k] for k in range(2)])
        return States(energies, forces, couplings, matrix, vectors)


def start(speed: float, x: float = -2.0) -> Atoms:
    """One heavy atom with a speed in A/fs."""
    atoms = Atoms("H", [[x, 0, 0]], masses=[MASS])
    atoms.set_velocities([[speed / units.fs, 0, 0]])
    return atoms


@pytest.mark.parametrize("coupling", [0.08, 0.12])
def test_the_share_that_hops_is_that_of_landau_and_zener(coupling) -> None:
    # so fast that the slopes do not change the speed by more than some per cent
    speed = 0.2
    velocity = speed / units.fs
    # P = exp(-2 pi V^2 / (hbar v |F1 - F2|)) of passing from one adiabatic state to the other
    expected = np.exp(-2 * np.pi * coupling**2 / (HBAR * velocity * 2 * FORCE))
    assert 0.1 < expected < 0.9
    number = 200
    hopped = 0
    for seed in range(number):
        run = surface_hopping(
            start(speed), Crossing(coupling), state=0, time_step=0.2, steps=100, seed=seed
        )
        hopped += run.state[-1]
        assert run.populations[-1].sum() == pytest.approx(1.0)
    # the amplitudes alone, without any chance
    assert run.populations[-1, 1] == pytest.approx(expected, abs=0.04)
    error = np.sqrt(expected * (1 - expected) / number)
    assert hopped / number == pytest.approx(expected, abs=0.04 + 3 * error)


def test_the_total_energy_stays_through_hops() -> None:
    hops = 0
    for seed in range(10):
        run = surface_hopping(
            start(0.1), Crossing(0.05), state=0, time_step=0.1, steps=400, seed=seed
        )
        hops += np.abs(np.diff(run.state)).sum()
        assert np.ptp(run.total_energy) < 1e-3
        assert run.time[-1] == pytest.approx(40.0)
        assert run.positions.shape == (401, 1, 3)
    assert hops > 0


def test_a_hop_without_the_energy_is_refused() -> None:
    # an atom that turns round near the crossing on the lower state: the upper one is out of reach
    refused = 0
    for seed in range(30):
        atoms = start(0.002, x=-0.05)
        run = surface_hopping(atoms, Crossing(0.02), state=0, time_step=0.1, steps=300, seed=seed)
        refused += run.refused
        assert np.ptp(run.total_energy) < 1e-3
    assert refused > 0


def test_targets_by_the_flux() -> None:
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    # a fifth of the state is lost, half to each of the others
    assert _target(0, old, new, 0.05) == 1
    assert _target(0, old, new, 0.15) == 2
    assert _target(0, old, new, 0.25) == 0
    # a state that gains is not left
    assert _target(1, old, new, 0.0) == 1
    assert _target(0, np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.0) == 0


def test_wrong_states_and_energies_are_refused() -> None:
    with pytest.raises(HoppingError, match=r"state=2.*choose 0 to 1"):
        surface_hopping(start(0.1), Crossing(0.05), state=2, time_step=0.1, steps=1)
    with pytest.raises(HoppingError, match="is not finite"):
        surface_hopping(start(np.nan), Crossing(0.05), state=0, time_step=0.1, steps=1)
