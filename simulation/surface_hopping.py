"""Surface hopping between coupled electronic states: global flux variant of fewest switches.

The nuclei move on one adiabatic state by velocity Verlet, with the forces of this state. The
electronic amplitudes c evolve with all states. They are kept in the diabatic basis of the head,
which has no derivative coupling, so that a step is exact for the mean matrix of its two ends:

    c(t + dt) = exp(-i H dt / hbar) c(t),   H = (H(t) + H(t + dt)) / 2
    a_k = v_k . c,   rho_k = |a_k|^2                      populations of the adiabatic states

The nuclei hop from state k to a state l, whose population grows, with the probability

    P = (rho_l' - rho_l) / rho_k * (rho_k - rho_k') / sum of all losses

(global flux surface hopping: Wang, Trivedi, Prezhdo, J. Chem. Theory Comput. 10, 3598 (2014); for
two states this is Tully's fewest switches, J. Chem. Phys. 93, 1061 (1990)). A hop changes the
momenta along the coupling h_kl so that the total energy is conserved. If the energy does not
suffice, the hop is refused.

There is no decoherence correction: amplitudes stay coherent after a hop. One run is one sample of
the stochastic process; observables need averages over many runs.

Shapes: K states, N atoms, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units

from ..core.errors import EvenfieldError
from ..model_zoo.heads.states import States


# hbar in eV times ASE's unit of time
HBAR = units._hbar / units._e * units.second


class HoppingError(EvenfieldError):
    """The initial state does not exist, or an energy or a force is not finite."""


@dataclass(frozen=True)
class Hopping:
    """The record of a surface-hopping run of T steps."""

    time: np.ndarray
    """(T + 1,) in fs"""
    state: np.ndarray
    """(T + 1,) index of the state on which the nuclei move, counted from 0"""
    populations: np.ndarray
    """(T + 1, K) populations rho of the adiabatic states"""
    energies: np.ndarray
    """(T + 1, K) energies of the adiabatic states, in eV"""
    total_energy: np.ndarray
    """(T + 1,) kinetic energy plus the energy of the current state, in eV"""
    positions: np.ndarray
    """(T + 1, N, 3) in A"""
    refused: int
    """number of hops that were refused because the energy did not suffice"""


def surface_hopping(
    atoms: Atoms,
    states_of: Callable[[Atoms], States],
    *,
    state: int,
    time_step: float,
    steps: int,
    seed: int = 0,
) -> Hopping:
    """Propagate `atoms` for `steps` steps of `time_step` fs from the pure adiabatic state `state`.

    atoms: must have momenta. Changed in place: they end with the last positions and momenta.
    states_of: `model.states` of a model with a head of states, or any function like it.
    seed: of the random numbers that decide about hops.

    Raises HoppingError if `state` does not exist, or if an energy or a force is not finite.
    """
    random = np.random.default_rng(seed)
    step = time_step * units.fs
    mass = atoms.get_masses()[:, None]
    now = _finite(states_of(atoms))
    if not 0 <= state < len(now.energies):
        raise HoppingError(
            f"state={state}", remedy=f"choose 0 to {len(now.energies) - 1}, the lowest is 0"
        )
    amplitudes = now.vectors[:, state].astype(complex)
    refused = 0
    record = _Record()
    record.add(0.0, atoms, state, amplitudes, now)

    for number in range(1, steps + 1):
        momenta = atoms.get_momenta() + 0.5 * step * now.forces[state]
        atoms.set_positions(atoms.positions + step * momenta / mass, apply_constraint=False)
        after = _finite(states_of(atoms))
        atoms.set_momenta(momenta + 0.5 * step * after.forces[state], apply_constraint=False)

        old = np.abs(now.vectors.T @ amplitudes) ** 2
        amplitudes = _propagated(amplitudes, 0.5 * (now.matrix + after.matrix), step)
        new = np.abs(after.vectors.T @ amplitudes) ** 2
        target = _target(state, old, new, random.random())
        if target != state:
            if _with_energy_kept(atoms, after, state, target):
                state = target
            else:
                refused += 1
        now = after
        record.add(number * time_step, atoms, state, amplitudes, now)
    return record.finished(refused)


def _finite(states: States) -> States:
    if not (np.isfinite(states.matrix).all() and np.isfinite(states.forces).all()):
        raise HoppingError(
            "an energy or a force of a state is not finite",
            remedy="take a shorter time step, or start from other positions",
        )
    return states


def _propagated(amplitudes: np.ndarray, matrix: np.ndarray, step: float) -> np.ndarray:
    """exp(-i H dt / hbar) c, for amplitudes c (K,) and a matrix H (K, K) in eV."""
    energies, vectors = np.linalg.eigh(matrix)
    phases = np.exp(-1j * energies * step / HBAR)
    found: np.ndarray = vectors @ (phases * (vectors.T @ amplitudes))
    return found


def _target(state: int, old: np.ndarray, new: np.ndarray, drawn: float) -> int:
    """The state after a step: `state` itself, or the state to hop to.

    old, new: populations (K,) before and after the step. drawn: a random number in [0, 1).
    """
    lost = np.maximum(old - new, 0.0)
    gained = np.maximum(new - old, 0.0)
    if lost[state] == 0.0 or old[state] == 0.0:
        return state
    chances = gained / old[state] * lost[state] / lost.sum()
    passed = np.flatnonzero(np.cumsum(chances) > drawn)
    return int(passed[0]) if len(passed) else state


def _with_energy_kept(atoms: Atoms, states: States, state: int, target: int) -> bool:
    """Rescale the momenta along the coupling h for a hop, so that the total energy is conserved.

    p' = p - g h, where g makes sum_i |p'_i|^2 / 2 m_i lower by the energy of `target` above
    `state`. Returns False and changes nothing if the kinetic energy does not suffice.
    """
    direction = states.couplings[state, target]
    mass = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    # a g^2 - b g + gap = 0
    a = 0.5 * float((direction**2 / mass).sum())
    b = float((momenta * direction / mass).sum())
    gap = float(states.energies[target] - states.energies[state])
    root = b * b - 4 * a * gap
    if root < 0 or a == 0.0:
        return False
    # of the two roots, the one that changes the momenta less
    g = (b - np.copysign(np.sqrt(root), b)) / (2 * a)
    atoms.set_momenta(momenta - g * direction, apply_constraint=False)
    return True


class _Record:
    """Collects one row for each step of a run."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, np.ndarray, np.ndarray, float, np.ndarray]] = []

    def add(
        self, time: float, atoms: Atoms, state: int, amplitudes: np.ndarray, states: States
    ) -> None:
        """Add a row; `time` in fs."""
        populations = np.abs(states.vectors.T @ amplitudes) ** 2
        total = float(atoms.get_kinetic_energy() + states.energies[state])
        self.rows.append((time, state, populations, states.energies, total, atoms.positions.copy()))

    def finished(self, refused: int) -> Hopping:
        """All rows as arrays."""
        columns = [np.array(column) for column in zip(*self.rows, strict=True)]
        time, state, populations, energies, total_energy, positions = columns
        return Hopping(time, state, populations, energies, total_energy, positions, refused)
