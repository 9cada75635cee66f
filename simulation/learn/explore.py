"""Guarded dynamics from each structure at each temperature and pressure: where do simulations go?

A walk is one such dynamics. It ends when its steps are done, or when a rule of the guard is broken;
in the next round, with the next model, it goes on from the state before that.

Without a pressure the cell is constant. With one, a Langevin piston changes its volume and keeps
its shape (Quigley and Probert, J. Chem. Phys. 120, 11432 (2004), integrated by ASE): a melt has no
shear modulus that would hold a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics

from ...core.errors import EvenfieldError
from ...core.thermal import set_thermal_momenta
from ...model_zoo.engines.calculator import EvenfieldCalculator
from ...model_zoo.engines.errors import UnseenElementError
from ..guard import Guard, GuardError, GuardStop
from . import store
from .config import LearnConfig


# The mass of the piston lets a crystal of this bulk modulus breathe within this period. A softer
# one breathes more slowly, with the root of its modulus.
TYPICAL_MODULUS = 100.0  # GPa
PERIOD = 200.0  # fs


class BarostatError(EvenfieldError):
    """A pressure that cannot be held."""


@dataclass(frozen=True)
class Frame:
    """A structure that a walk met, and what the model thought of it."""

    atoms: Atoms
    step: int
    """Of the walk, over all rounds."""
    radius: float | None
    """Largest of its forces, eV/A; None where it is infinite."""
    disagreement: float | None
    """Largest of its atoms, eV/A; None where it is infinite."""

    def to_json(self) -> dict[str, Any]:
        """For the file of the walk."""
        return {
            "atoms": store.as_json(self.atoms),
            "step": self.step,
            "radius": self.radius,
            "disagreement": self.disagreement,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Frame:
        """Inverse of `to_json`."""
        return cls(
            store.from_json(content["atoms"]),
            content["step"],
            content["radius"],
            content["disagreement"],
        )


@dataclass(frozen=True)
class Walk:
    """One dynamics as far as it has come."""

    structure: int
    """Number of the structure that it began with."""
    temperature: float
    pressure: float | None
    """GPa; None where the cell is constant."""
    steps: int
    """Steps that count, over all rounds."""
    state: Atoms
    """Where it goes on, with momenta."""
    piston: float = 0.0
    """Momentum of the logarithm of the cell's length, in units of ASE, where it goes on."""
    beginnings: int = 0
    """How often it has begun at its structure: again if it was stopped at its very first look."""
    stopped: dict[str, Any] | None = None
    """What stopped it in this round."""
    frames: list[Frame] = field(default_factory=list)
    """What it met in this round, in order; the last one is where it was stopped."""

    def is_over(self, config: LearnConfig) -> bool:
        """Whether all its steps are done."""
        return self.steps >= config.steps

    @property
    def conditions(self) -> str:
        """Temperature and pressure in words."""
        pressure = "" if self.pressure is None else f", {self.pressure:g} GPa"
        return f"{self.temperature:g} K{pressure}"

    def at_rest(self) -> Walk:
        """The walk in a round in which it meets nothing."""
        return replace(self, stopped=None, frames=[])

    def to_json(self) -> dict[str, Any]:
        """For its file."""
        return {
            "structure": self.structure,
            "temperature": self.temperature,
            "pressure": self.pressure,
            "steps": self.steps,
            "state": store.as_json(self.state),
            "piston": self.piston,
            "beginnings": self.beginnings,
            "stopped": self.stopped,
            "frames": [frame.to_json() for frame in self.frames],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Walk:
        """Inverse of `to_json`."""
        frames = [Frame.from_json(frame) for frame in content.pop("frames")]
        return cls(**content | {"state": store.from_json(content["state"]), "frames": frames})


def first_walks(structures: list[Atoms], config: LearnConfig) -> list[Walk]:
    """All walks before their first step."""
    walks: list[Walk] = []
    for number, atoms in enumerate(structures):
        for temperature in config.temperatures:
            for pressure in pressures_of(atoms, config):
                walk = Walk(number, temperature, pressure, 0, atoms)
                walks.append(_begin(walk, len(walks), atoms, config))
    return walks


def pressures_of(atoms: Atoms, config: LearnConfig) -> list[float | None]:
    """The pressures (GPa) at which a structure walks; None stands for a constant cell.

    What is not periodic in all directions has no volume that a pressure could work on.
    """
    if config.pressures and atoms.pbc.all():
        return list(config.pressures)
    return [None]


def dynamics_of(
    walk: Walk, atoms: Atoms, start: Atoms, rng: np.random.Generator, config: LearnConfig
) -> MolecularDynamics:
    """The dynamics of a walk that moves `atoms`, which have a calculator and momenta.

    `start` is the structure that the walk began with. Raises BarostatError.
    """
    time_step = config.time_step * units.fs
    if walk.pressure is None:
        return Langevin(
            atoms,
            time_step,
            temperature_K=walk.temperature,
            friction=config.friction / units.fs,
            rng=rng,
            fixcm=False,
        )
    dynamics: Any = barostat()(
        atoms,
        time_step,
        temperature_K=walk.temperature,
        externalstress=-walk.pressure * units.GPa,
        hydrostatic=True,
        T_tau=units.fs / config.friction,
        P_tau=PERIOD * units.fs,
        P_mass=_mass_of_piston(start),
        rng=rng,
    )
    # all else follows from atoms and settings
    dynamics.p_eps = walk.piston
    found: MolecularDynamics = dynamics
    return found


def barostat() -> type[MolecularDynamics]:
    """The dynamics under pressure. Raises BarostatError where the installed ASE has none."""
    try:
        from ase.md.langevinbaoab import LangevinBAOAB
    except ImportError as error:
        raise BarostatError(
            "pressures need a newer ASE than the installed one, which has no LangevinBAOAB",
            remedy="run `pip install --upgrade ase`, or leave pressures out",
        ) from error
    found: type[MolecularDynamics] = LangevinBAOAB
    return found


def _mass_of_piston(start: Atoms) -> float:
    """Mass M of the logarithm s of the cell's length, in units of ASE.

    The force on s is 3 V (p - p0), and p falls by 3 B with s, so that it oscillates with the square
    of the angular frequency 9 B V / M.
    """
    stiffness = 9 * TYPICAL_MODULUS * units.GPa * start.get_volume()
    return float(stiffness * (PERIOD * units.fs / (2 * np.pi)) ** 2)


def walk_on(
    walk: Walk,
    number: int,
    round_number: int,
    start: Atoms,
    calculator: EvenfieldCalculator,
    config: LearnConfig,
    show: Callable[[int], None],
) -> Walk:
    """The walk after this round. `start` is its structure; `show` is told the steps that are done.

    The calculator gives uncertainties. Raises GuardError, UnseenElementError and BarostatError.
    """
    atoms = walk.state.copy()
    atoms.calc = calculator
    guard = Guard(atoms, config.guard)
    # a stream of its own: a walk must not depend on the others
    rng = np.random.default_rng([config.seed, round_number, number])
    dynamics: MolecularDynamics | None = None
    frames: list[Frame] = []
    # of the piston, at the last look of the guard
    momentum = walk.piston

    def steps_done() -> int:
        return 0 if dynamics is None else dynamics.nsteps

    def met() -> Frame:
        # nothing is computed that is known already
        calculator.get_property("forces", atoms)  # type: ignore[no-untyped-call]
        results = calculator.results
        return Frame(
            _bare(atoms),
            walk.steps + steps_done(),
            _finite(np.max(results["forces_radius"])),
            _finite(results["max_committee_disagreement"]),
        )

    def remember_piston() -> None:
        nonlocal momentum
        momentum = _momentum_of_piston(dynamics)

    left = config.steps - walk.steps
    try:
        # a barostat computes the stress when it is made
        dynamics = dynamics_of(walk, atoms, start, rng, config)
        # in this order, so that the state that breaks a rule is met as well
        dynamics.attach(lambda: frames.append(met()), interval=config.every)
        dynamics.attach(guard, interval=config.guard.every)
        # after the guard and as often, so that it belongs to the state that the guard keeps
        dynamics.attach(remember_piston, interval=config.guard.every)
        dynamics.attach(lambda: show(walk.steps + steps_done()), interval=1)
        dynamics.run(left)
    except GuardStop as stop:
        reason = stop.stopped_by.to_dict() | {"step": walk.steps + steps_done()}
        if frames[-1].step != walk.steps + steps_done():
            frames.append(met())
        before = stop.before[0] if stop.before else None
        lost = config.guard.every
    except (GuardError, UnseenElementError, BarostatError):
        raise
    except (EvenfieldError, ValueError) as error:
        # atoms that have fused or flown away, a cell that has collapsed: no guard looked in time
        if isinstance(error, EvenfieldError):
            text = error.message
        elif _has_volume(atoms):
            raise
        else:
            text = "the cell has no volume any more"
        reason = {"text": text, "step": walk.steps + steps_done()}
        before = None
        lost = steps_done()
    else:
        return replace(
            walk,
            steps=config.steps,
            state=atoms,
            piston=_momentum_of_piston(dynamics),
            stopped=None,
            frames=frames,
        )
    done = replace(
        walk,
        steps=walk.steps + max(steps_done() - lost, 0),
        state=before or walk.state,
        piston=momentum,
        stopped=reason,
        frames=frames,
    )
    # what could not even begin would begin in the same way in the next round
    return done if before is not None else _begin(done, number, start, config)


def _has_volume(atoms: Atoms) -> bool:
    # where it is zero, ASE refuses to compute it
    volume = abs(np.linalg.det(atoms.cell.array))
    return bool(np.isfinite(volume) and volume > 0)


def _momentum_of_piston(dynamics: MolecularDynamics | None) -> float:
    # a dynamics at constant cell has none
    return float(getattr(dynamics, "p_eps", 0.0))


def _begin(walk: Walk, number: int, start: Atoms, config: LearnConfig) -> Walk:
    """The walk at its structure, with new velocities."""
    atoms = _bare(start)
    seed = np.random.SeedSequence([config.seed, number, walk.beginnings]).generate_state(1)
    set_thermal_momenta(atoms, walk.temperature, int(seed[0]))
    return replace(walk, state=atoms, piston=0.0, beginnings=walk.beginnings + 1)


def _bare(atoms: Atoms) -> Atoms:
    """A copy without calculator, momenta, constraints and whatever a file brought along."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
