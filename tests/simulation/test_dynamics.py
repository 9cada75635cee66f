"""Relaxation and dynamics: what is written, what is reported, and errors on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from evenfield.core.files import FileError
from evenfield.simulation.dynamics import (
    DynamicsConfig,
    DynamicsResult,
    ExplodedError,
    NothingMovesError,
    relax_and_run,
)


CONFIG = DynamicsConfig(steps=40, every=4, time_step=1.0, temperature=200.0)


@pytest.fixture
def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def run(atoms: Atoms, out: Path) -> DynamicsResult:
    return relax_and_run(atoms, EMT(), out, CONFIG)


def test_result_is_what_is_written(copper: Atoms, tmp_path: Path) -> None:
    positions = copper.positions.copy()
    result = run(copper, tmp_path / "md")
    # the structure of the caller stays as it was
    assert np.array_equal(copper.positions, positions)

    content = json.loads((tmp_path / "md" / "dynamics.json").read_text())
    assert content["drift_mev_per_atom_ps"] == result.drift_mev_per_atom_ps
    assert content["settings"] == CONFIG.model_dump()
    frames = ase.io.read(tmp_path / "md" / "trajectory.traj", ":")
    # the start, and then every fourth step
    assert len(frames) == len(result.time_ps) == 11
    assert result.time_ps[-1] == pytest.approx(0.04)


def test_energy_of_a_conservative_calculator_does_not_drift(copper: Atoms, tmp_path: Path) -> None:
    result = run(copper, tmp_path)
    assert result.relaxed
    assert abs(result.energy_mev_per_atom[-1]) < 1.0
    # half of the initial kinetic energy has gone into the bonds
    assert 50 < result.mean_temperature < 400


def test_same_seed_gives_the_same_run(copper: Atoms, tmp_path: Path) -> None:
    first = run(copper, tmp_path / "first")
    second = run(copper, tmp_path / "second")
    assert first == second


def test_fewer_steps_than_between_two_frames(copper: Atoms, tmp_path: Path) -> None:
    """The fit of one point ended in a traceback, and dynamics.json was lost."""
    config = CONFIG.model_copy(update={"steps": 2, "every": 10})
    result = relax_and_run(copper, EMT(), tmp_path, config)
    assert len(result.time_ps) == 2
    assert result.time_ps[-1] == pytest.approx(0.002)
    content = json.loads((tmp_path / "dynamics.json").read_text())
    assert np.isfinite(content["drift_mev_per_atom_ps"])
    assert len(ase.io.read(tmp_path / "trajectory.traj", ":")) == 2


def test_a_single_atom_has_no_dynamics(tmp_path: Path) -> None:
    """Its temperature was NaN, and the run ended in a traceback."""
    with pytest.raises(NothingMovesError, match="a single atom") as told:
        run(bulk("Ni"), tmp_path / "md")
    assert "repeat the cell" in told.value.remedy
    assert not (tmp_path / "md").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fixed", "constraints hold all of its atoms"),
        ("massless", "atom 1 has no positive mass"),
        ("mass of nan", "atom 1 has no positive mass"),
        ("empty", "the structure has no atoms"),
    ],
)
def test_a_structure_in_which_nothing_can_move_is_refused(
    fault: str, message: str, copper: Atoms, tmp_path: Path
) -> None:
    """The error said that the dynamics had exploded."""
    masses = copper.get_masses()
    masses[1] = np.nan if fault == "mass of nan" else 0.0
    if fault == "fixed":
        copper.set_constraint(FixAtoms(range(len(copper))))
    elif fault == "empty":
        copper = Atoms()
    else:
        copper.set_masses(masses)
    with pytest.raises(NothingMovesError, match=message):
        run(copper, tmp_path / "md")


def test_a_dynamics_that_never_starts_is_an_error(
    copper: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Atoms, "get_temperature", lambda _: float("nan"))
    with pytest.raises(ExplodedError, match="before its first step: a temperature of nan K"):
        run(copper, tmp_path / "md")


class Exploding(EMT):
    """EMT whose forces grow with every call: what a model far from its data does."""

    def __init__(self, answer: Callable[[np.ndarray, int], np.ndarray]) -> None:
        super().__init__()
        self.answer = answer
        self.num_calls = 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.num_calls += 1
        self.results["forces"] = self.answer(self.results["forces"], self.num_calls)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda forces, call: forces * 3.0**call, r"exploded at step \d+: "),
        (lambda forces, call: forces * (np.nan if call > 20 else 1), "a temperature of nan K"),
        # slow enough to stay cold, but no energy is conserved
        (lambda forces, call: -forces * 100, "the total energy is off by"),
    ],
)
def test_exploded_dynamics_is_an_error_that_keeps_what_came_before(
    answer: Callable[[np.ndarray, int], np.ndarray], message: str, copper: Atoms, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"relax_steps": 0, "steps": 200, "every": 1})
    with pytest.raises(ExplodedError, match=message) as error:
        relax_and_run(copper, Exploding(answer), tmp_path, config)

    content = json.loads((tmp_path / "dynamics.json").read_text())
    assert content["completed_steps"] < 200
    assert content["failure"] in str(error.value)
    assert np.isfinite(content["energy_mev_per_atom"]).all()
    frames = ase.io.read(tmp_path / "trajectory.traj", ":")
    assert len(frames) == len(content["time_ps"]) >= 1


@pytest.mark.parametrize(
    ("error", "failure"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("no memory"), "no memory")],
)
def test_an_interrupted_run_keeps_what_came_before(
    error: BaseException, failure: str, copper: Atoms, tmp_path: Path
) -> None:
    def answer(forces: np.ndarray, call: int) -> np.ndarray:
        if call > 20:
            raise error
        return forces

    config = CONFIG.model_copy(update={"relax_steps": 0, "steps": 200, "every": 1})
    with pytest.raises(type(error)):
        relax_and_run(copper, Exploding(answer), tmp_path, config)
    content = json.loads((tmp_path / "dynamics.json").read_text())
    assert failure in content["failure"]
    assert 1 < content["completed_steps"] < 200
    frames = ase.io.read(tmp_path / "trajectory.traj", ":")
    assert len(frames) == len(content["time_ps"]) > 1


def test_relaxed_means_that_forces_are_small(copper: Atoms, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"relax_steps": 1})
    result = relax_and_run(copper, EMT(), tmp_path, config)
    assert not result.relaxed
    assert result.largest_force > config.fmax


def test_folder_that_cannot_be_written(copper: Atoms, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="file"):
        run(copper, tmp_path / "file")
