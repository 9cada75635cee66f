"""Walks under pressure: the volume and its fluctuations, and that a walk goes on where it was."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from scipy.optimize import brentq

from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.explore import (
    BarostatError,
    Walk,
    barostat,
    dynamics_of,
    first_walks,
    walk_on,
)


pytest.importorskip("ase.md.langevinbaoab", reason="this ASE has no barostat that fits")


def settings(**changes: Any) -> LearnConfig:
    return LearnConfig.model_validate({"oracle": "EMT", "temperatures": [100.0], **changes})


def pressure_at(volume: float) -> float:
    """Of a crystal of copper at rest, in eV/A^3; volume in A^3 of the cell of four atoms."""
    atoms = bulk("Cu", a=volume ** (1 / 3), cubic=True)
    atoms.calc = EMT()
    return -float(atoms.get_stress(voigt=False).trace()) / 3


class Knowing(EMT):
    """EMT that claims a radius for each force, which grows with the force."""

    def calculate(self, *what: Any, **how: Any) -> None:
        super().calculate(*what, **how)
        self.results["forces_radius"] = np.linalg.norm(self.results["forces"], axis=1)
        self.results["max_committee_disagreement"] = 0.0


def test_volume_and_its_fluctuation_are_those_of_the_bulk_modulus() -> None:
    """<V> solves p(V) = p0, and <dV^2> = k T V / B, where it is cold and so nearly harmonic."""
    temperature = 60.0
    config = settings(temperatures=[temperature], pressures=[0.0, 15.0], time_step=4.0)
    start = bulk("Cu", a=3.6, cubic=True)
    means = []
    for number, walk in enumerate(first_walks([start], config)):
        assert walk.pressure is not None
        at_rest = brentq(lambda v, p=walk.pressure: pressure_at(v) - p * units.GPa, 35.0, 50.0)
        modulus = -at_rest * (pressure_at(at_rest + 0.01) - pressure_at(at_rest - 0.01)) / 0.02
        atoms = walk.state.copy()
        atoms.calc = EMT()
        rng = np.random.default_rng(number)
        dynamics = dynamics_of(walk, atoms, start, rng, config)
        volumes: list[float] = []
        dynamics.attach(lambda atoms=atoms, to=volumes: to.append(atoms.get_volume()))
        dynamics.run(800)

        found = np.array(volumes[160:])
        expected = units.kB * temperature * at_rest / modulus
        assert np.isclose(found.mean(), at_rest, rtol=0.006)
        assert np.isclose(found.var(), expected, rtol=0.5)
        # the shape stays
        assert np.allclose(atoms.cell.array, np.eye(3) * atoms.get_volume() ** (1 / 3))
        means.append(found.mean())
    # ten times what the tolerance above allows
    assert means[1] < 0.94 * means[0]


def test_the_momentum_of_the_piston_is_all_that_atoms_do_not_hold() -> None:
    """Ten steps, and the last five of them again from what a file would hold.

    They differ by the kinetic pressure, which ASE takes half a step earlier when it does not begin.
    """
    config = settings(pressures=[20.0])
    start = bulk("Cu", a=3.6, cubic=True)
    walk = first_walks([start], config)[0]
    atoms = walk.state.copy()
    atoms.calc = EMT()
    rng = np.random.default_rng(0)
    whole = dynamics_of(walk, atoms, start, rng, config)
    whole.run(5)
    there = replace(walk, state=atoms.copy(), piston=whole.p_eps, steps=5)
    rng_there = copy.deepcopy(rng)
    whole.run(5)

    read = Walk.from_json(json.loads(json.dumps(there.to_json())))
    assert read.pressure == 20.0
    again = read.state.copy()
    again.calc = EMT()
    dynamics_of(read, again, start, rng_there, config).run(5)
    assert np.allclose(again.positions, atoms.positions, rtol=0, atol=1e-6)
    assert np.isclose(again.get_volume(), atoms.get_volume(), rtol=0, atol=1e-4)
    # without it, the cell would go another way
    lost = read.state.copy()
    lost.calc = EMT()
    dynamics_of(replace(read, piston=0.0), lost, start, copy.deepcopy(rng_there), config).run(5)
    assert abs(lost.get_volume() - again.get_volume()) > 1e-2


def test_a_stopped_walk_keeps_cell_and_piston_of_the_state_before() -> None:
    start = bulk("Cu", a=3.6, cubic=True)
    free = settings(pressures=[20.0], temperatures=[600.0], steps=12, every=3)
    walk = first_walks([start], free)[0]
    free = free.model_copy(update={"guard": free.guard.model_copy(update={"force_radius": 1e6})})
    whole = walk_on(walk, 0, 1, start, Knowing(), free, lambda _: None)
    radii = [frame.radius for frame in whole.frames]
    # a start at rest has none
    limit = sorted(radii)[-2]
    guard = free.guard.model_copy(update={"force_radius": limit, "every": 2})
    held = free.model_copy(update={"guard": guard})
    part = walk_on(walk, 0, 1, start, Knowing(), held, lambda _: None)
    assert part.stopped is not None and 0 < part.steps < 12

    # the same walk up to there, without a guard that stops it
    atoms = walk.state.copy()
    atoms.calc = EMT()
    dynamics = dynamics_of(walk, atoms, start, np.random.default_rng([0, 1, 0]), free)
    dynamics.run(part.steps)
    assert part.piston == dynamics.p_eps != 0.0
    assert np.array_equal(part.state.cell.array, atoms.cell.array)
    assert np.array_equal(part.state.get_momenta(), atoms.get_momenta())
    assert part.state.get_volume() != start.get_volume()


class Nothing(Calculator):
    """No force, and nothing that would hold a cell."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, *what: Any, **how: Any) -> None:
        super().calculate(*what, **how)
        zeros = np.zeros((len(self.atoms), 3))
        self.results = {"energy": 0.0, "forces": zeros, "stress": np.zeros(6)}
        self.results |= {"forces_radius": zeros[:, 0], "max_committee_disagreement": 0.0}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_cell_that_collapses_stops_its_walk() -> None:
    """It begins again, as with atoms that have fused."""
    config = settings(pressures=[0.0], steps=12, guard={"force_radius": 1e6})
    start = bulk("Cu", a=3.6, cubic=True)
    walk = replace(first_walks([start], config)[0], pressure=1e9)
    gone = walk_on(walk, 0, 1, start, Nothing(), config, lambda _: None)
    assert gone.stopped is not None and gone.stopped["text"] == "the cell has no volume any more"
    assert gone.beginnings == 2 and gone.piston == 0.0 and gone.steps == 0
    assert np.array_equal(gone.state.cell.array, start.cell.array)


def test_without_a_barostat_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the oldest ASE that is allowed."""
    monkeypatch.setitem(sys.modules, "ase.md.langevinbaoab", None)
    with pytest.raises(BarostatError, match="pressures need a newer ASE"):
        barostat()


def test_what_has_no_volume_walks_at_constant_cell() -> None:
    config = settings(pressures=[0.0, 5.0], temperatures=[300.0, 600.0])
    structures: list[Atoms] = [bulk("Cu", cubic=True), molecule("CO")]
    walks = first_walks(structures, config)
    assert [(walk.structure, walk.conditions) for walk in walks] == [
        (0, "300 K, 0 GPa"),
        (0, "300 K, 5 GPa"),
        (0, "600 K, 0 GPa"),
        (0, "600 K, 5 GPa"),
        (1, "300 K"),
        (1, "600 K"),
    ]
