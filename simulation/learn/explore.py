"""Guarded dynamics from each structure at each temperature: where do simulations go?

A walk is one such dynamics. It ends when its steps are done, or when a rule of the guard is broken;
in the next round, with the next model, it goes on from the state before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin

from ...core.errors import EvenfieldError
from ...core.thermal import set_thermal_momenta
from ...model_zoo.engines.calculator import EvenfieldCalculator
from ...model_zoo.engines.errors import UnseenElementError
from ..guard import Guard, GuardError, GuardStop
from . import store
from .config import LearnConfig


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
    steps: int
    """Steps that count, over all rounds."""
    state: Atoms
    """Where it goes on, with momenta."""
    beginnings: int = 0
    """How often it has begun at its structure: again if it was stopped at its very first look."""
    stopped: dict[str, Any] | None = None
    """What stopped it in this round."""
    frames: list[Frame] = field(default_factory=list)
    """What it met in this round, in order; the last one is where it was stopped."""

    def is_over(self, config: LearnConfig) -> bool:
        """Whether all its steps are done."""
        return self.steps >= config.steps

    def at_rest(self) -> Walk:
        """The walk in a round in which it meets nothing."""
        return replace(self, stopped=None, frames=[])

    def to_json(self) -> dict[str, Any]:
        """For its file."""
        return {
            "structure": self.structure,
            "temperature": self.temperature,
            "steps": self.steps,
            "state": store.as_json(self.state),
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
            walk = Walk(number, temperature, 0, atoms)
            walks.append(_begin(walk, len(walks), atoms, config))
    return walks


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

    The calculator gives uncertainties. Raises GuardError and UnseenElementError.
    """
    atoms = walk.state.copy()
    atoms.calc = calculator
    guard = Guard(atoms, config.guard)
    dynamics = Langevin(
        atoms,
        config.time_step * units.fs,
        temperature_K=walk.temperature,
        friction=config.friction / units.fs,
        # a stream of its own: a walk must not depend on the others
        rng=np.random.default_rng([config.seed, round_number, number]),
        fixcm=False,
    )
    frames: list[Frame] = []

    def met() -> Frame:
        # nothing is computed that is known already
        calculator.get_property("forces", atoms)  # type: ignore[no-untyped-call]
        results = calculator.results
        return Frame(
            _bare(atoms),
            walk.steps + dynamics.nsteps,
            _finite(np.max(results["forces_radius"])),
            _finite(results["max_committee_disagreement"]),
        )

    # in this order, so that the state that breaks a rule is met as well
    dynamics.attach(lambda: frames.append(met()), interval=config.every)
    dynamics.attach(guard, interval=config.guard.every)
    dynamics.attach(lambda: show(walk.steps + dynamics.nsteps), interval=1)
    left = config.steps - walk.steps
    try:
        dynamics.run(left)
    except GuardStop as stop:
        reason = stop.stopped_by.to_dict() | {"step": walk.steps + dynamics.nsteps}
        if frames[-1].step != walk.steps + dynamics.nsteps:
            frames.append(met())
        before = stop.before[0] if stop.before else None
        lost = config.guard.every
    except (GuardError, UnseenElementError):
        raise
    except EvenfieldError as error:
        # atoms that have fused or flown away: no guard looked in time
        reason = {"text": error.message, "step": walk.steps + dynamics.nsteps}
        before = None
        lost = dynamics.nsteps
    else:
        return replace(walk, steps=config.steps, state=atoms, stopped=None, frames=frames)
    done = replace(
        walk,
        steps=walk.steps + max(dynamics.nsteps - lost, 0),
        state=before or walk.state,
        stopped=reason,
        frames=frames,
    )
    # what could not even begin would begin in the same way in the next round
    return done if before is not None else _begin(done, number, start, config)


def _begin(walk: Walk, number: int, start: Atoms, config: LearnConfig) -> Walk:
    """The walk at its structure, with new velocities."""
    atoms = _bare(start)
    seed = np.random.SeedSequence([config.seed, number, walk.beginnings]).generate_state(1)
    set_thermal_momenta(atoms, walk.temperature, int(seed[0]))
    return replace(walk, state=atoms, beginnings=walk.beginnings + 1)


def _bare(atoms: Atoms) -> Atoms:
    """A copy without calculator, momenta, constraints and whatever a file brought along."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
