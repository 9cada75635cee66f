"""Guarded dynamics from each structure at each temperature and pressure: where do simulations go?

A walk is one such dynamics. In a round it runs until its steps are done, or until it breaks a rule
of the guard. In the next round, with the next model, it goes on from the state before that.

Without a pressure the cell is constant. With one, a Langevin piston changes its volume and keeps
its shape (Quigley and Probert, J. Chem. Phys. 120, 11432 (2004), integrated by ASE). The shape is
kept because a melt has no shear modulus that would hold it.
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


# The mass of the piston makes the volume of a crystal with this bulk modulus (GPa) oscillate with
# this period (fs). The period of a softer one is longer, by the square root of the moduli's ratio.
TYPICAL_MODULUS = 100.0
PERIOD = 200.0


class BarostatError(EvenfieldError):
    """A pressure that cannot be held."""


@dataclass(frozen=True)
class Frame:
    """A structure that a walk met, and what the model thought of it."""

    atoms: Atoms
    step: int
    """Of the walk, over all rounds."""
    radius: float | None
    """Largest radius of its forces, eV/A; None if it is infinite."""
    disagreement: float | None
    """Largest disagreement of the committee on its atoms, eV/A; None if it is infinite."""

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
    """One dynamics as far as it has come, and what it met in the last round."""

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
    """How often it has begun at its structure.

    It begins again each time that the guard knows no earlier state to go back to.
    """
    stopped: dict[str, Any] | None = None
    """What stopped it in this round; None if it was not stopped."""
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
        """The walk in a round in which it rests, and meets nothing."""
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

    A structure that is not periodic in all directions has no volume that a pressure could work on.
    """
    if config.pressures and atoms.pbc.all():
        return list(config.pressures)
    return [None]


def dynamics_of(
    walk: Walk, atoms: Atoms, start: Atoms, rng: np.random.Generator, config: LearnConfig
) -> MolecularDynamics:
    """The dynamics that moves `atoms`, which have a calculator and momenta, in a walk.

    start: the structure that the walk began with. rng: of the thermostat and the piston.
    Raises BarostatError.
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
    # the only state of the dynamics that atoms and settings do not contain
    dynamics.p_eps = walk.piston
    typed: MolecularDynamics = dynamics
    return typed


def barostat() -> type[MolecularDynamics]:
    """The dynamics under pressure. Raises BarostatError where the installed ASE has none."""
    try:
        from ase.md.langevinbaoab import LangevinBAOAB
    except ImportError as error:
        raise BarostatError(
            "pressures need a newer ASE than the installed one, which has no LangevinBAOAB",
            remedy="run `pip install --upgrade ase`, or leave pressures out",
        ) from error
    typed: type[MolecularDynamics] = LangevinBAOAB
    return typed


def _mass_of_piston(start: Atoms) -> float:
    """Mass M of the logarithm s of the cell's length, in units of ASE.

    The force on s is 3 V (p - p0), and dp/ds = -3 B with the bulk modulus B. So s oscillates with
    the angular frequency (9 B V / M)^(1/2).
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
    """The walk after this round.

    number, round_number: of the walk and of the round, for the seeds.
    start: the structure that the walk began with.
    calculator: gives uncertainties.
    show: is told the steps that are done, over all rounds.

    Raises GuardError, UnseenElementError and BarostatError.
    """
    atoms = walk.state.copy()
    atoms.calc = calculator
    guard = Guard(atoms, config.guard)
    # random numbers of its own: a walk must not depend on the others
    rng = np.random.default_rng([config.seed, round_number, number])
    dynamics: MolecularDynamics | None = None
    frames: list[Frame] = []
    # at the last look of the guard
    piston = walk.piston

    def steps_of_round() -> int:
        return 0 if dynamics is None else dynamics.nsteps

    def steps_of_walk() -> int:
        return walk.steps + steps_of_round()

    def present_frame() -> Frame:
        # computes nothing if the dynamics has done so already
        calculator.get_property("forces", atoms)  # type: ignore[no-untyped-call]
        results = calculator.results
        return Frame(
            _bare(atoms),
            steps_of_walk(),
            _finite(np.max(results["forces_radius"])),
            _finite(results["max_committee_disagreement"]),
        )

    def remember_piston() -> None:
        nonlocal piston
        piston = _momentum_of_piston(dynamics)

    try:
        # inside `try`, because a barostat computes the stress when it is made
        dynamics = dynamics_of(walk, atoms, start, rng, config)
        # before the guard, so that the state that breaks a rule becomes a frame as well
        dynamics.attach(lambda: frames.append(present_frame()), interval=config.every)
        dynamics.attach(guard, interval=config.guard.every)
        # after the guard and as often, so that it belongs to the state that the guard keeps
        dynamics.attach(remember_piston, interval=config.guard.every)
        dynamics.attach(lambda: show(steps_of_walk()), interval=1)
        dynamics.run(config.steps - walk.steps)
    except GuardStop as stop:
        reason = stop.stopped_by.to_dict() | {"step": steps_of_walk()}
        if frames[-1].step != steps_of_walk():
            frames.append(present_frame())
        before = stop.before[0] if stop.before else None
        steps_lost = config.guard.every
    except (GuardError, UnseenElementError, BarostatError):
        raise
    except (EvenfieldError, ValueError) as error:
        # Atoms have fused or flown away, or the cell has collapsed, before the guard looked.
        if isinstance(error, EvenfieldError):
            text = error.message
        elif _has_volume(atoms):
            raise
        else:
            text = "the cell has no volume any more"
        reason = {"text": text, "step": steps_of_walk()}
        before = None
        steps_lost = steps_of_round()
    else:
        return replace(
            walk,
            steps=config.steps,
            state=atoms,
            piston=_momentum_of_piston(dynamics),
            stopped=None,
            frames=frames,
        )

    stopped = replace(
        walk,
        steps=walk.steps + max(steps_of_round() - steps_lost, 0),
        state=before or walk.state,
        piston=piston,
        stopped=reason,
        frames=frames,
    )
    # Without an earlier state it would fail in the same way again, so it gets new velocities.
    return stopped if before is not None else _begin(stopped, number, start, config)


def _has_volume(atoms: Atoms) -> bool:
    """Whether the cell has a volume; if it has none, ASE refuses to compute one."""
    volume = abs(np.linalg.det(atoms.cell.array))
    return bool(np.isfinite(volume) and volume > 0)


def _momentum_of_piston(dynamics: MolecularDynamics | None) -> float:
    """Momentum of the piston, in units of ASE; 0 at constant cell, where there is no piston."""
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
    """The value, or None, which JSON can hold, if it is not finite."""
    return float(value) if np.isfinite(value) else None
