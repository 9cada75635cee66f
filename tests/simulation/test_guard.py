"""Guards: which rule is broken by which atoms, in every kind of simulation, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.simulation.dynamics import DynamicsConfig, relax_and_run
from evenfield.simulation.guard import Guard, GuardConfig, GuardError, GuardStop


class Unsure(EMT):
    """EMT whose radius on an atom is how far it is from where it was made, in eV/A per A."""

    def __init__(self, places: np.ndarray) -> None:
        super().__init__()
        self.places = places.copy()
        self.num_calls = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.num_calls += 1
        away = np.linalg.norm(self.atoms.positions - self.places, axis=1)
        self.results["forces_radius"] = away
        self.results["committee_disagreement"] = 2 * away
        self.results["distance"] = 3 * away


@pytest.fixture
def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = Unsure(atoms.positions)
    return atoms


def stop_of(guard: Guard) -> GuardStop:
    with pytest.raises(GuardStop) as told:
        guard()
    return told.value


@pytest.mark.parametrize(
    ("rule", "factor", "words"),
    [
        ("force_radius", 1, "the force may be off by"),
        ("disagreement", 2, "forces of the committee differ by"),
        ("distance", 3, "a distance of"),
    ],
)
def test_rules_about_what_is_known_name_the_worst_atoms(
    rule: str, factor: float, words: str, copper: Atoms
) -> None:
    guard = Guard(copper, GuardConfig.model_validate({rule: 0.1 * factor}))
    guard()
    copper.positions[2, 0] += 0.3
    copper.positions[1, 1] += 0.2
    copper.positions[0, 1] += 0.09
    stop = stop_of(guard)
    assert stop.stopped_by.atoms == [2, 1]
    assert stop.stopped_by.value == pytest.approx(0.3 * factor)
    assert words in stop.message
    assert "atoms 2 (Cu), 1 (Cu)" in stop.message
    assert f"guard.{rule}={0.1 * factor:g}" in stop.message
    # the state before is the one of the last look that found nothing
    assert np.array_equal(stop.before[0].positions, copper.calc.places)


def test_what_is_not_a_number_or_was_never_seen_is_no_all_clear(copper: Atoms) -> None:
    guard = Guard(copper, GuardConfig(force_radius=1e9))
    copper.get_forces()
    for bad in (np.nan, np.inf):
        copper.calc.results["forces_radius"][3] = bad
        stop = stop_of(guard)
        assert stop.stopped_by.atoms == [3]
        json.dumps(stop.stopped_by.to_dict(), allow_nan=False)


def test_a_bond_is_broken_when_it_is_long_and_not_when_it_is_wrapped() -> None:
    atoms = Atoms("N2", [[0, 0, 0.1], [0, 0, 1.2]], cell=[8, 8, 8], pbc=True)
    guard = Guard(atoms, GuardConfig(bond_stretch=1.5))
    for length in (1.3, 1.6):
        atoms.positions[1, 2] = 0.1 + length
        guard()
    # through the lower face, and back in at the upper one
    atoms.positions[:, 2] -= 0.3
    atoms.wrap()
    assert np.ptp(atoms.positions[:, 2]) > 5
    guard()
    atoms.positions[1, 2] += 0.1
    stop = stop_of(guard)
    assert stop.stopped_by.value == pytest.approx(1.7 / 1.1)
    assert stop.stopped_by.atoms == [0, 1]


def test_atoms_that_leave_together_are_told_from_those_that_were_apart() -> None:
    """Two molecules are two fragments from the start; a third piece is news."""
    one = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    other = one.copy()
    other.positions += [0, 0, 9]
    atoms = one + other
    guard = Guard(atoms, GuardConfig(gap=3.0))
    atoms.positions[3:] += [0, 0, 5]
    guard()
    atoms.positions[[1, 2]] += [6, 0, 0]
    stop = stop_of(guard)
    assert stop.stopped_by.atoms == [0]
    assert "left the others by more than 3 A" in stop.message


def test_a_hot_structure_names_its_fastest_atom(copper: Atoms) -> None:
    guard = Guard(copper, GuardConfig(temperature=1000.0))
    guard()
    momenta = np.zeros((4, 3))
    # 3 N k T / 2 = p^2 / 2 m
    momenta[2, 0] = np.sqrt(copper.get_masses()[2] * 12 * units.kB * 1500.0)
    copper.set_momenta(momenta)
    stop = stop_of(guard)
    assert stop.stopped_by.value == pytest.approx(1500.0)
    assert stop.stopped_by.atoms == [2]


def test_guards_that_cannot_see_say_so(copper: Atoms) -> None:
    with pytest.raises(GuardError, match="a guard without a rule"):
        Guard(copper, GuardConfig())
    copper.calc = EMT()
    with pytest.raises(GuardError, match="needs forces_radius") as told:
        Guard(copper, GuardConfig(force_radius=1.0))()
    assert "uncertainty=True" in told.value.remedy


def simulate_in(ensemble: str, atoms: Atoms) -> Any:
    rng = np.random.default_rng(0)
    atoms.set_momenta(rng.normal(0, 5.0, (len(atoms), 3)))
    if ensemble == "NVE":
        return VelocityVerlet(atoms, 2 * units.fs)
    if ensemble == "NVT":
        return Langevin(atoms, 2 * units.fs, temperature_K=800, friction=0.02, rng=rng, fixcm=False)
    if ensemble == "NPT":
        from ase.md.nptberendsen import NPTBerendsen

        return NPTBerendsen(
            atoms, 2 * units.fs, temperature_K=800, pressure_au=0.0, compressibility_au=1.0
        )
    return BFGS(atoms, logfile=None) if ensemble == "BFGS" else FIRE(atoms, logfile=None)


@pytest.mark.parametrize("ensemble", ["NVE", "NVT", "NPT", "BFGS", "FIRE"])
def test_an_observer_of_everything_that_moves_atoms(
    ensemble: str, copper: Atoms, tmp_path: Path
) -> None:
    atoms = copper.repeat((2, 1, 1))
    atoms.rattle(0.2, seed=1)
    atoms.calc = Unsure(atoms.positions)
    guard = Guard(atoms, GuardConfig(force_radius=0.05), file=tmp_path / "stopped.traj")
    moving = simulate_in(ensemble, atoms)
    moving.attach(guard)
    with pytest.raises(GuardStop):
        moving.run(steps=200)
    assert 0 < moving.nsteps < 200
    # no look costs a calculation of its own
    alone = atoms.copy()
    alone.positions = atoms.calc.places
    alone.calc = Unsure(alone.positions)
    simulate_in(ensemble, alone).run(steps=moving.nsteps)
    assert atoms.calc.num_calls <= alone.calc.num_calls + 1
    before, stopped = ase.io.read(tmp_path / "stopped.traj", ":")
    places = atoms.calc.places
    assert np.linalg.norm(before.positions - places, axis=1).max() <= 0.05
    assert np.linalg.norm(stopped.positions - places, axis=1).max() > 0.05
    assert np.array_equal(stopped.positions, atoms.positions)


def test_a_band_names_the_image() -> None:
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    del atoms[0]
    atoms.set_constraint(FixAtoms([10]))
    images = [atoms.copy() for _ in range(5)]
    # the neighbour jumps into the vacancy
    images[-1].positions[0] = 0.0
    band = NEB(images, method="improvedtangent")
    band.interpolate()
    for image in images[1:-1]:
        image.calc = Unsure(image.positions)
    for end in (images[0], images[-1]):
        end.calc = EMT()
    guard = Guard(images, GuardConfig(force_radius=0.05))
    moving = FIRE(band, logfile=None)
    moving.attach(guard)
    with pytest.raises(GuardStop) as told:
        moving.run(fmax=0.01, steps=100)
    reason = told.value.stopped_by
    away = [
        np.linalg.norm(image.positions - image.calc.places, axis=1).max() for image in images[1:-1]
    ]
    assert reason.image is not None and away[reason.image - 1] > 0.05
    assert f"of image {reason.image}" in told.value.message
    assert len(told.value.before) == 5


CONFIG = DynamicsConfig(
    relax_steps=0, steps=200, every=4, time_step=2.0, guard=GuardConfig(force_radius=0.1)
)


def test_the_state_before_goes_on_to_the_one_that_was_stopped_at(
    copper: Atoms, tmp_path: Path
) -> None:
    with pytest.raises(GuardStop, match="the guard stopped the dynamics at step") as told:
        relax_and_run(copper, copper.calc, tmp_path, CONFIG)
    content = json.loads((tmp_path / "dynamics.json").read_text())
    steps = content["completed_steps"]
    assert 1 < steps < 200
    assert content["survival_ps"] == pytest.approx((steps - 1) * 0.002)
    assert content["guard"]["rule"] == "force_radius"
    assert content["guard"]["text"] == content["failure"]
    assert content["failure"] in str(told.value)
    assert "stopped.traj" in told.value.remedy

    before, stopped = ase.io.read(tmp_path / "stopped.traj", ":")
    before.calc = EMT()
    VelocityVerlet(before, 2 * units.fs).run(1)
    assert np.allclose(before.positions, stopped.positions, rtol=0, atol=1e-12)
    assert np.allclose(before.get_momenta(), stopped.get_momenta(), rtol=0, atol=1e-12)


def test_looks_from_time_to_time_by_another_calculator(copper: Atoms, tmp_path: Path) -> None:
    """The dynamics is the same, and only looks are paid for."""
    judge = Unsure(copper.positions)
    config = CONFIG.model_copy(update={"guard": GuardConfig(force_radius=0.1, every=5)})
    with pytest.raises(GuardStop):
        relax_and_run(copper, EMT(), tmp_path, config, judge)
    content = json.loads((tmp_path / "dynamics.json").read_text())
    steps = content["completed_steps"]
    assert steps % 5 == 0
    assert judge.num_calls == steps // 5 + 1
    assert content["survival_ps"] == pytest.approx((steps - 5) * 0.002)


def test_a_relaxation_that_is_stopped_has_no_dynamics(copper: Atoms, tmp_path: Path) -> None:
    copper.positions[0] += 0.2
    calculator = Unsure(copper.positions)
    config = CONFIG.model_copy(update={"relax_steps": 50, "guard": GuardConfig(force_radius=0.05)})
    with pytest.raises(GuardStop, match="the guard stopped the relaxation at step"):
        relax_and_run(copper, calculator, tmp_path, config)
    content = json.loads((tmp_path / "dynamics.json").read_text())
    assert content["completed_steps"] == 0 and content["drift_mev_per_atom_ps"] is None
    assert content["guard"]["atoms"]
    assert len(ase.io.read(tmp_path / "stopped.traj", ":")) == 2


def test_a_quiet_guard_changes_nothing(copper: Atoms, tmp_path: Path) -> None:
    free = CONFIG.model_copy(update={"guard": GuardConfig(), "steps": 20})
    quiet = CONFIG.model_copy(update={"guard": GuardConfig(force_radius=9.0), "steps": 20})
    without = relax_and_run(copper, EMT(), tmp_path / "free", free)
    watched = relax_and_run(copper, Unsure(copper.positions), tmp_path / "quiet", quiet)
    assert watched.energy_mev_per_atom == without.energy_mev_per_atom
    assert watched.guard is None and watched.survival_ps == pytest.approx(0.04)
    assert not (tmp_path / "quiet" / "stopped.traj").exists()


def test_command_with_a_model(tmp_path: Path) -> None:
    """evenfield-1 knows how large its errors are; evenfield-s does not."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    path = tmp_path / "copper.extxyz"
    ase.io.write(path, atoms)

    def simulate(model: str, out: str, *words: str) -> Any:
        command = ["simulate", model, str(path), str(tmp_path / out), "steps=4", "relax_steps=1"]
        return CliRunner().invoke(app, [*command, *words])

    done = simulate("evenfield-1", "often", "guard.force_radius=50", "guard.gap=6")
    assert done.exit_code == 0, done.output
    done = simulate("evenfield-1", "seldom", "guard.force_radius=50", "guard.every=2")
    assert done.exit_code == 0, done.output
    often, seldom = (
        json.loads((tmp_path / out / "dynamics.json").read_text()) for out in ("often", "seldom")
    )
    # radii are made of what is computed anyway
    assert often["energy_mev_per_atom"] == seldom["energy_mev_per_atom"]

    done = simulate("evenfield-1", "stopped", "guard.force_radius=0.0001")
    assert isinstance(done.exception, GuardStop)
    assert "the start itself is outside" in done.exception.remedy
    assert simulate("evenfield-1", "stopped", "--overwrite").exit_code == 0
    done = simulate("evenfield-s", "no", "--level-of-theory", "EMT", "guard.force_radius=1")
    assert "no record of the uncertainty" in str(done.exception)
    assert not (tmp_path / "no").exists()
