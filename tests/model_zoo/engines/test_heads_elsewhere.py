"""Heads of other properties in other programs say what ASE's calculator says."""

from __future__ import annotations

import gc
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.units import Bohr

from evenfield import model_zoo
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.heads.description import HeadError
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.folder import attach

from i_pi_input import dynamics_input
from labelled_molecules import (
    ROTATING,
    heads_of_all_kinds,
    molecular_model,
    molecules,
    planted_head,
)


# heads that say how large their errors are
SPREADS = ("gap_std", "volume_std", "moment_std", "dipole_std", "atom_tensor_std")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = molecular_model(tmp_path_factory.mktemp("elsewhere") / "model", **ROTATING)
    potential = model_zoo.load(path).potential
    attach(path, {HEADS: heads_file(potential, heads_of_all_kinds(potential))})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


def unlike(*, periodic: bool = False) -> list[Atoms]:
    """Structures of different sizes and elements."""
    if not periodic:
        return molecules(copies=1)[:6]
    crystals = [bulk("CO", "rocksalt", a=3.6), bulk("C", cubic=True) * (2, 1, 1)]
    for seed, crystal in enumerate(crystals):
        crystal.rattle(0.1, seed=seed)
    crystals[1].symbols[3] = "N"
    return crystals


def calculated(model: LoadedModel, frames: list[Atoms], **settings: Any) -> list[dict[str, Any]]:
    """The results of ASE's calculator, structure by structure."""
    calculator = model.calculator(**({"heads": True, "dtype": "float64"} | settings))
    found = []
    for atoms in frames:
        calculator.calculate(atoms)
        found.append(dict(calculator.results))
    return found


# --- torch-sim


def torch_sim_state(ts: Any, frames: list[Atoms], dtype: torch.dtype = torch.float64) -> Any:
    return ts.io.atoms_to_state(frames, torch.device("cpu"), dtype)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
def test_torch_sim_says_what_the_calculator_says(
    model: LoadedModel, periodic: bool, dtype: str, tolerance: float
) -> None:
    """All heads, in a batch of unlike structures; there is no dipole of a crystal."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype=dtype, heads=True)
    frames = unlike(periodic=periodic)
    state = torch_sim_state(ts, frames, getattr(torch, dtype))
    found = wrapped(state)
    assert list(found) == wrapped.implemented_properties
    expected = calculated(model, frames, dtype=dtype)
    names = {*model.heads, *SPREADS}
    assert names <= set(found)
    for system, own in enumerate(expected):
        rows = state.system_idx == system
        assert ("dipole" in own) != periodic
        for name in names:
            per_atom = found[name].shape[0] == len(rows)
            value = found[name][rows] if per_atom else found[name][system]
            if name in ("dipole", "dipole_std") and periodic:
                assert value.isnan().all()
                continue
            reference = own[name]
            scale = max(1.0, np.nanmax(np.abs(reference), initial=0.0))
            np.testing.assert_allclose(value, reference, atol=tolerance * scale, err_msg=name)
    assert found["moment"].isnan().any() and not found["moment"].isnan().all()
    assert found["phase"].sum(1).numpy() == pytest.approx(1.0)
    assert found["charges"].dtype == getattr(torch, dtype)


def test_torch_sim_writes_heads_into_trajectories(model: LoadedModel, tmp_path: Path) -> None:
    """Dynamics of unlike molecules, and what the reporter kept of each of them."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype="float64", heads=True)
    frames = unlike()[:3]
    files = [str(tmp_path / f"{system}.h5") for system in range(len(frames))]
    reporter = ts.TrajectoryReporter(
        files, state_frequency=2, prop_calculators={2: wrapped.property_calculators()}
    )
    ts.integrate(
        torch_sim_state(ts, frames),
        wrapped,
        integrator=ts.nve,
        n_steps=4,
        temperature=300.0,
        timestep=0.0005,
        trajectory_reporter=reporter,
    )
    reporter.close()
    for file in files:
        with ts.TorchSimTrajectory(file, mode="r") as trajectory:
            kept = {name: trajectory.get_array(name) for name in wrapped.heads.names}
            assert len(kept["dipole"]) == 2
            for place in range(2):
                (expected,) = calculated(model, [trajectory.get_atoms(place)])
                for name, values in kept.items():
                    value = values[place]
                    np.testing.assert_allclose(
                        value.squeeze(), expected[name], atol=1e-6, err_msg=name
                    )
        # the second look was at other positions
        assert np.abs(kept["dipole"][0] - kept["dipole"][1]).max() > 1e-6


def test_torch_sim_computes_properties_of_one_look_once(model: LoadedModel) -> None:
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype="float64", heads=["dipole", "gap"])
    passes = []
    wrapped.potential.backbone.register_forward_hook(lambda *_: passes.append(1))
    state = torch_sim_state(ts, unlike()[:1])
    calculators = wrapped.property_calculators()
    first = {name: calculate(state) for name, calculate in calculators.items()}
    # the invariants of one head; vectors of the other take another way
    assert len(passes) == 1
    # a state that a program has moved in place is another one
    state.positions[0] += 0.1
    assert not torch.equal(calculators["dipole"](state), first["dipole"])
    state.positions[0] -= 0.1
    np.testing.assert_allclose(calculators["dipole"](state), first["dipole"], atol=1e-12)

    with pytest.raises(
        EngineError, match=r"phase: no head .* choose from dipole, dipole_std, gap, gap_std"
    ):
        wrapped.property_calculators(["phase"])
    without = EvenfieldTorchSimModel(model, dtype="float64")
    with pytest.raises(EngineError, match="make it with heads=True"):
        without.properties_of(state)
    with pytest.raises(HeadError, match="mass: the model has no such head"):
        EvenfieldTorchSimModel(model, heads=["mass"])


def test_torch_sims_own_check_with_heads(tmp_path: Path) -> None:
    """Heads of a level whose elements are those of torch-sim's check."""
    pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from torch_sim.models.interface import validate_model_outputs

    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    path = molecular_model(tmp_path / "model")
    loaded = model_zoo.load(path)
    loaded.record.elements["PBE"] = ["Si", "Fe"]
    head = planted_head("scalar", loaded.potential.backbone.num_features, name="gap", unit="eV")
    silicon = head.description.model_copy(update={"elements": ["Si", "Fe", "H", "O"]})
    head = type(head)(silicon, head.weight, head.bias)
    file = {HEADS: heads_file(loaded.potential, {"gap": head})}
    saved = model_zoo.save_model(
        tmp_path / "other", loaded.potential, loaded.record, attachments=file
    )
    wrapped = EvenfieldTorchSimModel(model_zoo.load(saved), dtype="float64", heads=True)
    validate_model_outputs(wrapped, torch.device("cpu"), torch.float64)


# --- metatomic


@pytest.fixture(scope="module")
def exported(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("metatomic", reason="comes with the extra `metatomic`")
    path = tmp_path_factory.mktemp("file") / "heads.pt"
    return model_zoo.export_metatomic(model, path, heads=True)


@cache
def loaded_file(path: Path) -> Any:
    import metatomic.torch as mta

    return mta.load_atomistic_model(path)


def metatomic_values(
    path: Path, frames: list[Atoms], *, selected: list[list[int]] | None = None, **units: str
) -> dict[str, Any]:
    """All outputs of a file, or those named in `units`, as metatomic's maps."""
    import metatomic.torch as mta
    import vesin.metatomic
    from metatensor.torch import Labels

    loaded = loaded_file(path)
    dtype = getattr(torch, loaded.capabilities().dtype)
    systems = mta.systems_to_torch(frames, dtype=dtype)
    for neighbours in vesin.metatomic.neighbor_lists_for_model("angstrom", loaded):
        for system in systems:
            neighbours.add_neighbor_list(system)
    declared = {
        name: output
        for name, output in loaded.capabilities().outputs.items()
        if name not in ("charges", "non_conservative_forces")
    }
    outputs = {}
    for name in units or declared:
        about = declared[name]
        unit = units.get(name) or about.unit
        outputs[name] = mta.ModelOutput(unit=unit, sample_kind=about.sample_kind)
    labels = None
    if selected is not None:
        labels = Labels(["system", "atom"], torch.tensor(selected, dtype=torch.int32))
    options = mta.ModelEvaluationOptions("angstrom", outputs, labels)
    return loaded(systems, options, check_consistency=True)


def column_of(name: str) -> str:
    """Where ASE's calculator has an output."""
    standard = {
        "energy": "energies",
        "charge": "charges",
        "non_conservative_force": "direct_forces",
    }
    return standard.get(name, name.removeprefix("evenfield::"))


def test_a_metatomic_file_says_what_the_calculator_says(model: LoadedModel, exported: Path) -> None:
    """All outputs at once, in unlike structures; metatomic checks the labels of each."""
    frames = unlike()
    found = metatomic_values(exported, frames)
    expected = calculated(model, frames)
    names = {column_of(name) for name in found}
    assert names == {"energies", *model.heads, *SPREADS}
    for name, tensor_map in found.items():
        block = tensor_map.block()
        own = [np.atleast_1d(results[column_of(name)]) for results in expected]
        is_of_atoms = block.samples.names == ["system", "atom"]
        reference = np.concatenate(own) if is_of_atoms else np.stack(own)
        values = block.values.numpy().reshape(reference.shape)
        scale = max(1.0, np.nanmax(np.abs(reference)))
        np.testing.assert_allclose(values, reference, atol=1e-6 * scale, err_msg=name)
    components = {name: found[name].block().components for name in found}
    assert components["evenfield::dipole"][0].names == ["xyz"]
    assert [own.names for own in components["evenfield::atom_tensor"]] == [["xyz_1"], ["xyz_2"]]
    assert found["evenfield::phase"].block().properties.names == ["class"]


def test_a_metatomic_file_knows_no_dipole_of_a_crystal(model: LoadedModel, exported: Path) -> None:
    frames = unlike(periodic=True)
    names = ["charge", "evenfield::tensor", "evenfield::levels", "evenfield::hand"]
    found = metatomic_values(exported, frames, **dict.fromkeys(names, ""))
    for name in names:
        own = [np.atleast_1d(results[column_of(name)]) for results in calculated(model, frames)]
        reference = np.concatenate(own) if name == "charge" else np.stack(own)
        values = found[name].block().values.numpy().reshape(reference.shape)
        np.testing.assert_allclose(values, reference, atol=1e-6, err_msg=name)
    with pytest.raises(Exception, match="a periodic structure has no dipole moment of its own"):
        metatomic_values(exported, frames, **{"evenfield::dipole": ""})


def test_selected_atoms_of_a_metatomic_file(model: LoadedModel, exported: Path) -> None:
    """Sums and atoms are those that count; what needs the whole structure is refused."""
    frames = unlike()[:2]
    assert len(frames[0]) == 3
    selected = [[0, 0], [0, 2], [1, 1]]
    # the second and all atoms of the first, whose sums add up to that of all atoms
    rest = [[0, 1], *[[1, atom] for atom in range(len(frames[1])) if atom != 1]]
    names = dict.fromkeys(["evenfield::atom_vector", "evenfield::tensor", "evenfield::volume"], "")
    first = metatomic_values(exported, frames, selected=selected, **names)
    second = metatomic_values(exported, frames, selected=rest, **names)
    expected = calculated(model, frames)
    own = first["evenfield::atom_vector"].block().values.squeeze(-1).numpy()
    reference = [expected[system]["atom_vector"][atom] for system, atom in selected]
    np.testing.assert_allclose(own, reference, atol=1e-9)
    for name in ("evenfield::tensor", "evenfield::volume"):
        total = first[name].block().values + second[name].block().values
        reference = np.stack([results[column_of(name)] for results in expected])
        values = total.numpy().reshape(reference.shape)
        np.testing.assert_allclose(values, reference, atol=1e-9, err_msg=name)

    # all of them in another order is no part
    whole = [[system, atom] for system in (1, 0) for atom in range(len(frames[system]))]
    charges = metatomic_values(exported, frames, selected=whole, charge="")["charge"].block()
    for (system, atom), value in zip(charges.samples.values.tolist(), charges.values, strict=True):
        assert float(value) == pytest.approx(expected[system]["charges"][atom], abs=1e-9)
    for name in ("charge", "evenfield::gap", "evenfield::phase", "non_conservative_force"):
        with pytest.raises(Exception, match=f"{name} depends on all atoms of a structure"):
            metatomic_values(exported, frames, selected=selected, **{name: ""})


def test_units_of_heads_are_those_of_metatomic(model: LoadedModel, exported: Path) -> None:
    import metatomic.torch as mta

    outputs = mta.load_atomistic_model(exported).capabilities().outputs
    assert outputs["charge"].unit == "e"
    assert outputs["non_conservative_force"].unit == "eV/A"
    # it has no volt, and no atoms to divide by
    assert outputs["evenfield::polarizability"].unit == "e^2*A^2/eV"
    assert outputs["evenfield::gap"].unit == ""
    assert "in eV/atom" in outputs["evenfield::gap"].description
    assert "solid, liquid, gas" in outputs["evenfield::phase"].description

    frames = unlike()[:1]
    debye = metatomic_values(exported, frames, **{"evenfield::dipole": "Debye"})
    (expected,) = calculated(model, frames)
    found = debye["evenfield::dipole"].block().values.numpy().ravel()
    np.testing.assert_allclose(found, expected["dipole"] * 4.803204712570264, rtol=1e-6)


def test_derivatives_of_a_head_through_metatomic(model: LoadedModel, exported: Path) -> None:
    """A program that differentiates the dipole gets the charges of Born."""
    import metatomic.torch as mta
    import vesin.metatomic

    loaded = loaded_file(exported)
    (atoms,) = unlike()[4:5]
    system = mta.systems_to_torch(atoms, dtype=torch.float64, positions_requires_grad=True)
    for neighbours in vesin.metatomic.neighbor_lists_for_model("angstrom", loaded):
        neighbours.add_neighbor_list(system)
    outputs = {"evenfield::dipole": mta.ModelOutput(unit="e*A", sample_kind="system")}
    options = mta.ModelEvaluationOptions("angstrom", outputs, None)
    dipole = loaded([system], options, True)["evenfield::dipole"].block().values.squeeze()
    rows = [torch.autograd.grad(own, system.positions, retain_graph=True)[0] for own in dipole]
    expected = model.polar_tensors(atoms)
    np.testing.assert_allclose(torch.stack(rows, 1).numpy(), expected, atol=1e-9)


def test_a_metatomic_file_of_one_head_refuses_what_the_head_has_not_learned(
    tmp_path: Path,
) -> None:
    """The file has this head alone, knows the other elements, and refuses them for it."""
    pytest.importorskip("metatomic", reason="comes with the extra `metatomic`")
    path = molecular_model(tmp_path / "model")
    potential = model_zoo.load(path).potential
    heads = {}
    for name in ("volume", "gap"):
        head = planted_head("scalar", 8, name=name, unit="A^3", features="readout", spread=True)
        organic = head.description.model_copy(update={"elements": ["H", "C", "O"]})
        of_spread = (head.spread_weight, head.spread_bias[:3])
        heads[name] = type(head)(organic, head.weight, head.bias[:, :3], None, *of_spread)
    attach(path, {HEADS: heads_file(potential, heads)})
    few = model_zoo.load(path)
    path = model_zoo.export_metatomic(few, tmp_path / "one.pt", heads=["volume"], dtype="float32")
    water, ammonia = unlike()[:2]
    found = metatomic_values(path, [water])
    assert set(found) == {"energy", "evenfield::volume", "evenfield::volume_std"}
    (expected,) = calculated(few, [water], heads=["volume"])
    value = float(found["evenfield::volume"].block().values)
    assert value == pytest.approx(expected["volume"], rel=1e-4)
    assert set(metatomic_values(path, [ammonia], energy="eV")) == {"energy"}
    with pytest.raises(Exception, match="volume was fitted to H, C, O only"):
        metatomic_values(path, [ammonia])

    with pytest.raises(HeadError, match="mass: the model has no such head"):
        model_zoo.export_metatomic(few, tmp_path / "two.pt", heads=["mass"])
    assert not (tmp_path / "two.pt").exists()


# --- i-PI


def written(folder: Path, name: str, bead: int) -> np.ndarray:
    """What i-PI wrote of an entry at each step, (steps, numbers)."""
    (file,) = folder.glob(f"run.{name}_{bead}")
    steps = re.split(r" #EXTRAS.*\n", file.read_text())[1:]
    return np.array([[float(number) for number in step.split()] for step in steps])


# i-PI uses names that Python deprecates, and leaves files open until they are collected
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_i_pi_writes_what_heads_say(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path integral of a molecule: each entry of each bead in a file of its own."""
    pytest.importorskip("ipi", reason="comes with the extra `engines`")
    from ipi.utils.scripting import InteractiveSimulation

    from evenfield.model_zoo.engines import i_pi_driver

    monkeypatch.chdir(tmp_path)
    (atoms,) = unlike()[4:5]
    # i-PI wants a cell, and the molecule is not periodic all the same
    atoms.set_cell([20, 20, 20])
    ase.io.write("start.extxyz", atoms)
    names = [*model.heads, *SPREADS]
    outputs = "".join(
        f"<trajectory filename='{name}' stride='1' extra_type='{name}'>extras</trajectory>"
        for name in names
    )
    path = i_pi_driver.__file__
    program_input = dynamics_input("custom", 2, path, outputs, model=folder, heads="all")
    run = InteractiveSimulation(program_input)
    run.run(2)
    (system,) = run.syslist
    for bead in range(2):
        atoms.positions[:] = system.beads.q[bead].reshape(-1, 3) * Bohr
        (expected,) = calculated(model, [atoms])
        for name in ("dipole", "dipole_std"):
            expected[name] = expected[name] / Bohr
        for name in names:
            found = written(tmp_path, name, bead)
            assert len(found) == 3
            reference = np.ravel(expected[name])
            scale = max(1.0, np.nanmax(np.abs(reference)))
            np.testing.assert_allclose(found[-1], reference, atol=1e-6 * scale, err_msg=name)
        first, *_, last = written(tmp_path, "dipole", bead)
        assert np.abs(last - first).max() > 1e-4

    # collected here, not in another test
    del run, system
    gc.collect()


@pytest.mark.parametrize("periodic", [False, True])
def test_i_pi_driver_gives_the_same_for_beads_in_one_call(
    folder: Path, tmp_path: Path, periodic: bool
) -> None:
    from evenfield.model_zoo.engines.i_pi_driver import EvenfieldDriver

    atoms = unlike(periodic=periodic)[0]
    atoms.set_cell(atoms.cell.array if periodic else 20 * np.eye(3))
    ase.io.write(tmp_path / "start.extxyz", atoms)
    driver = EvenfieldDriver(str(tmp_path / "start.extxyz"), str(folder), heads="all")
    rng = np.random.default_rng(0)
    positions = [atoms.positions / Bohr + rng.normal(0, 0.05, (len(atoms), 3)) for _ in range(3)]
    cells = [atoms.cell.array.T / Bohr] * 3
    found = [json.loads(extras) for *_, extras in driver(cells, positions)]
    for own, extras in zip(positions, found, strict=True):
        alone = json.loads(driver(cells[0], own)[3])
        assert list(alone) == list(extras)
        assert ("dipole" in alone) != periodic
        assert np.shape(extras["atom_tensor"]) == (len(atoms), 9)
        for name, value in alone.items():
            np.testing.assert_allclose(extras[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
    assert found[0]["gap"] != found[1]["gap"]

    # chosen by name, and none without
    few = EvenfieldDriver(str(tmp_path / "start.extxyz"), str(folder), heads="gap phase")
    assert list(json.loads(few(cells[0], positions[0])[3])) == ["gap", "gap_std", "phase"]
    none = EvenfieldDriver(str(tmp_path / "start.extxyz"), str(folder))
    assert none(cells[0], positions[0])[3] == ""


def test_i_pi_driver_refuses_names_that_i_pi_reads(tmp_path: Path) -> None:
    from evenfield.model_zoo.engines.i_pi_driver import EvenfieldDriver

    path = molecular_model(tmp_path / "model")
    potential = model_zoo.load(path).potential
    size = potential.backbone.num_features
    heads = {name: planted_head("scalar", size, name=name, unit="eV") for name in ("raw", "gap")}
    attach(path, {HEADS: heads_file(potential, heads)})
    ase.io.write(tmp_path / "start.extxyz", unlike()[0])
    with pytest.raises(EngineError, match="raw: i-PI has another meaning"):
        EvenfieldDriver(str(tmp_path / "start.extxyz"), str(path), heads="all")
    EvenfieldDriver(str(tmp_path / "start.extxyz"), str(path), heads="gap")
