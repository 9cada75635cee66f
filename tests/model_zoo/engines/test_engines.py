"""Other programs run the model: torch-sim, with its own conformance check, and i-PI."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.units import Bohr, Hartree

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.census.domain import domain_of
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.engines.domain_watch import DomainWarning
from evenfield.model_zoo.engines.errors import EngineError, UnseenElementError
from evenfield.model_zoo.package.domain_record import domain_file

from i_pi_input import dynamics_input


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> model_zoo.LoadedModel:
    """With the elements that torch-sim's check uses, and reference energies of a real size."""
    torch.manual_seed(0)
    config = PotentialConfig(
        channels=8, cutoff=4.5, readout_size=16, levels_of_theory=["PBE", "EMT"]
    )
    potential = Potential(config)
    potential.e0[:] = -321.0
    elements = {"PBE": ["Si", "Fe"], "EMT": ["Cu", "Au"]}
    record = ModelRecord(name="iron", elements=elements, default_level="PBE")

    # saved and loaded, because engines take a LoadedModel
    folder = tmp_path_factory.mktemp("engines") / "model"
    model_zoo.save_model(folder, potential, record)
    return model_zoo.load(folder)


def structures() -> list[Atoms]:
    """Two periodic cells of different shape and size."""
    first = bulk("Cu", cubic=True)
    second = bulk("Au") * (2, 1, 1)
    first.rattle(0.1, seed=0)
    second.rattle(0.1, seed=1)
    second.symbols[0] = "Cu"

    # an oblique cell, which shows whether its vectors are rows or columns
    shear = np.array([[0, 0.1, 0], [0, 0, 0], [0.2, 0, 0]])
    second.set_cell(second.cell.array + shear)
    return [first, second]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_sims_own_check(model: model_zoo.LoadedModel, dtype: str) -> None:
    pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from torch_sim.models.interface import validate_model_outputs

    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype=dtype)
    validate_model_outputs(wrapped, torch.device("cpu"), getattr(torch, dtype))


def test_torch_sim_agrees_with_the_calculator(model: model_zoo.LoadedModel) -> None:
    """A batch of different cells; dynamics long enough to search for neighbours again."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, level_of_theory="EMT", dtype="float64", skin=0.2)
    start = ts.io.atoms_to_state(structures(), torch.device("cpu"), torch.float64)
    end = ts.integrate(
        start, wrapped, integrator=ts.nve, n_steps=40, temperature=900.0, timestep=0.004
    )
    # further than half the skin, so that the lists were made again
    assert (end.positions - start.positions).abs().max() > 0.2

    for state in (start, end):
        out = wrapped(state)
        for system, atoms in enumerate(state.to_atoms()):
            atoms.calc = model.calculator(level_of_theory="EMT", dtype="float64")
            rows = state.system_idx == system
            assert np.allclose(out["forces"][rows], atoms.get_forces(), atol=1e-5)
            stress = atoms.get_stress(voigt=False)
            assert np.allclose(out["stress"][system], stress, atol=1e-7)
            energy = atoms.get_potential_energy()
            assert float(out["energy"][system]) == pytest.approx(energy, abs=1e-6)


def test_torch_sim_refuses_unknown_elements(model: model_zoo.LoadedModel) -> None:
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    state = ts.io.atoms_to_state(structures(), torch.device("cpu"), torch.float32)
    with pytest.raises(UnseenElementError, match=r"Cu, Au: not among the 2 elements.*PBE"):
        EvenfieldTorchSimModel(model)(state)


def test_torch_sim_refuses_results_that_are_not_finite(model: model_zoo.LoadedModel) -> None:
    """One bad system must not spread NaN through the batch."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    twice = bulk("Cu", cubic=True)
    twice += Atoms("Cu", twice.positions[:1])
    state = ts.io.atoms_to_state([*structures(), twice], torch.device("cpu"), torch.float64)
    wrapped = EvenfieldTorchSimModel(model, level_of_theory="EMT", dtype="float64")
    with pytest.raises(EngineError, match="are 0 A apart"):
        wrapped(state)


def test_torch_sim_warns_outside_of_the_training(model: model_zoo.LoadedModel) -> None:
    """Once, whichever of the systems it is; inside of the domain nothing is said."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    known = Structure.from_atoms(structures()[0], "EMT", "known")
    domain = domain_file({"EMT": domain_of([known])})
    watched = replace(model, attachments={**model.attachments, **domain})
    wrapped = EvenfieldTorchSimModel(watched, level_of_theory="EMT", dtype="float64")
    inside = ts.io.atoms_to_state(structures()[:1], torch.device("cpu"), torch.float64)
    wrapped(inside)

    near = structures()[0]
    near.set_cell(near.cell * 0.9, scale_atoms=True)
    state = ts.io.atoms_to_state([structures()[0], near], torch.device("cpu"), torch.float64)
    with pytest.warns(DomainWarning, match="closer than in any training structure of EMT"):
        wrapped(state)
    wrapped(state)


def test_torch_sim_in_inference_mode(model: model_zoo.LoadedModel) -> None:
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, level_of_theory="EMT")
    state = ts.io.atoms_to_state(structures(), torch.device("cpu"), torch.float64)
    expected = wrapped(state)["forces"]
    with torch.inference_mode():
        inside = ts.io.atoms_to_state(structures(), torch.device("cpu"), torch.float64)
        assert torch.equal(wrapped(inside)["forces"], expected)


def test_i_pi_driver_refuses_a_misspelt_parameter(tmp_path: Path) -> None:
    """It was ignored, and the model's default level answered."""
    from evenfield.model_zoo.engines.i_pi_driver import EvenfieldDriver

    ase.io.write(tmp_path / "start.extxyz", structures()[0])
    with pytest.raises(EngineError, match="level: no such parameter"):
        EvenfieldDriver(str(tmp_path / "start.extxyz"), "evenfield-s", level="EMT", verbosity=1)


@pytest.mark.parametrize("periodic", [True, False])
def test_beads_in_one_call_are_what_they_are_one_after_the_other(
    model: model_zoo.LoadedModel, tmp_path: Path, periodic: bool
) -> None:
    from evenfield.model_zoo.engines.i_pi_driver import EvenfieldDriver

    atoms = structures()[0] * (2, 1, 1)
    atoms.pbc = periodic
    ase.io.write(tmp_path / "start.extxyz", atoms)
    folder = model_zoo.save_model(tmp_path / "model", model.potential, model.record)
    driver = EvenfieldDriver(str(tmp_path / "start.extxyz"), str(folder), level_of_theory="EMT")
    rng = np.random.default_rng(0)
    positions = [atoms.positions / Bohr + rng.normal(0, 0.1, (len(atoms), 3)) for _ in range(5)]
    # columns are cell vectors, and no two cells are the same
    cells = [atoms.cell.array.T / Bohr * (1 + 0.01 * bead) for bead in range(5)]

    found = driver(cells, positions)
    for cell, own, (energy, forces, virial, _) in zip(cells, positions, found, strict=True):
        alone = driver(cell, own)
        assert energy == pytest.approx(alone[0], abs=1e-10)
        assert forces == pytest.approx(alone[1], abs=1e-10)
        assert virial == pytest.approx(alone[2], abs=1e-10)
        assert virial.any() == periodic


def test_a_bead_without_neighbours_to_search_is_named(
    model: model_zoo.LoadedModel, tmp_path: Path
) -> None:
    from evenfield.model_zoo.engines.i_pi_driver import EvenfieldDriver

    atoms = structures()[0]
    ase.io.write(tmp_path / "start.extxyz", atoms)
    folder = model_zoo.save_model(tmp_path / "model", model.potential, model.record)
    driver = EvenfieldDriver(str(tmp_path / "start.extxyz"), str(folder), level_of_theory="EMT")
    cells = [atoms.cell.array.T / Bohr] * 2
    with pytest.raises(EvenfieldError, match="position of atom 0 is"):
        driver(cells, [atoms.positions / Bohr, np.full((len(atoms), 3), np.nan)])


# i-PI uses names that Python deprecates, and leaves files open until they are collected
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("beads", [1, 2])
def test_i_pi_runs_dynamics(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beads: int
) -> None:
    """Classical dynamics and a path integral end with the calculator's energy and forces."""
    pytest.importorskip("ipi", reason="comes with the extra `engines`")
    from ipi.utils.scripting import InteractiveSimulation

    from evenfield.model_zoo.engines import i_pi_driver

    monkeypatch.chdir(tmp_path)
    ase.io.write("start.extxyz", structures()[0] * (2, 1, 1))
    folder = model_zoo.save_model(tmp_path / "model", model.potential, model.record)
    program_input = dynamics_input(
        "custom", beads, i_pi_driver.__file__, model=folder, level_of_theory="EMT"
    )
    run = InteractiveSimulation(program_input)
    run.run(10)
    system = run.syslist[0]

    # i-PI has cell vectors in columns, and atomic units
    for bead in range(beads):
        atoms = ase.io.read("start.extxyz")
        atoms.set_cell(system.cell.h.T * Bohr)
        atoms.positions[:] = system.beads.q[bead].reshape(-1, 3) * Bohr
        atoms.calc = model.calculator(level_of_theory="EMT", dtype="float64")

        forces = system.forces.f[bead].reshape(-1, 3) * Hartree / Bohr
        assert np.allclose(forces, atoms.get_forces(), atol=1e-5)
        energy = system.forces.pots[bead] * Hartree
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert np.abs(atoms.get_forces()).max() > 0.01

    # collected here, not in another test
    del run, system
    gc.collect()
