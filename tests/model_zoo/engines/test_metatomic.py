"""The metatomic file gives what the calculator gives, in metatomic's own tools and in i-PI."""

from __future__ import annotations

import gc
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from typer.testing import CliRunner

from evenfield import model_zoo
from evenfield.cli import app
from evenfield.core.errors import EvenfieldError, MissingPackageError
from evenfield.core.files import FileError
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.engines.errors import EngineError

from i_pi_input import dynamics_input


pytest.importorskip("metatomic", reason="comes with the extra `metatomic`")
LEVELS = {"PBE": ["Cu", "Au", "C", "O", "H"], "EMT": ["Cu"]}


def small(folder: Path, **architecture: Any) -> model_zoo.LoadedModel:
    """A model with reference energies of a real size, and heads that differ."""
    torch.manual_seed(0)
    sizes = {"channels": 4, "l_max": 2, "cutoff": 3.5, "readout_size": 8, "radial_hidden": 8}
    config = PotentialConfig(levels_of_theory=list(LEVELS), **(sizes | architecture))
    potential = Potential(config)
    potential.e0[:] = -torch.arange(2 * 119).view(2, 119) * 12.3456789
    potential.scale[:] = torch.tensor([5.0, 7.0])
    about = {"name": "small", "licence": "CC0-1.0", "description": "For tests."}
    record = ModelRecord(**about, elements=LEVELS, default_level="PBE")
    model_zoo.save_model(folder, potential, record)
    return model_zoo.load(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> model_zoo.LoadedModel:
    return small(tmp_path_factory.mktemp("metatomic") / "model")


@pytest.fixture(scope="module")
def exported(model: model_zoo.LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metatomic") / "new" / "small.pt"
    return model_zoo.export_metatomic(model, path)


@pytest.fixture(scope="module")
def metatomic(exported: Path) -> ModuleType:
    """metatomic.torch; the export has imported it before anything could interfere."""
    import metatomic.torch

    return metatomic.torch


def structures() -> dict[str, Atoms]:
    """Periodic in all, some and no directions; of one atom, with and without neighbours."""
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.rattle(0.1, seed=0)
    crystal.symbols[0] = "Au"
    crystal.set_cell(crystal.cell.array + np.array([[0, 0.1, 0], [0, 0, 0], [0.2, 0, 0]]))

    slab = bulk("Au", cubic=True)
    slab.rattle(0.1, seed=1)
    slab.pbc = [True, True, False]

    strained = bulk("Cu")
    strained.set_cell(strained.cell.array * [1.0, 1.02, 0.97])

    # deep in the core repulsion
    close = Atoms("CO", [[0, 0, 0], [0, 0, 0.5]])
    return {
        "crystal": crystal,
        "slab": slab,
        "molecule": molecule("CH3CH2OH"),
        "close contact": close,
        "one-atom cell": strained,
        "lone atom": Atoms("Cu"),
    }


def calculated(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return {
        "energy": atoms.get_potential_energy(),
        "energies": atoms.get_potential_energies(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress() if atoms.pbc.all() else np.zeros(6),
    }


# metatomic-ase divides by the volume of a molecule
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_it_gives_what_the_calculator_gives(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    """Agreement to rounding in float64; metatomic checks the consistency of every call."""
    from metatomic_ase import MetatomicCalculator

    own = model.calculator(dtype="float64")
    other = MetatomicCalculator(exported, check_consistency=True)
    largest = 0.0
    for name, atoms in structures().items():
        expected = calculated(atoms, own)
        found = calculated(atoms, other)
        for key, value in expected.items():
            np.testing.assert_allclose(
                found[key], value, rtol=1e-12, atol=1e-9, err_msg=f"{name}: {key}"
            )
        largest = max(largest, float(np.abs(expected["forces"]).max()))
    # only the core repulsion reaches such forces
    assert largest > 10


@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [
        ("float32", {"l_max": 3, "l_hidden": 2, "num_layers": 1}),
        ("float64", {"l_max": 0, "l_hidden": 0, "correlation": 1, "repulsion": False}),
    ],
)
def test_other_architectures_and_heads(
    tmp_path: Path, dtype: str, architecture: dict[str, Any]
) -> None:
    model = small(tmp_path / "model", **architecture)
    path = model_zoo.export_metatomic(
        model, tmp_path / "small.pt", level_of_theory="EMT", dtype=dtype
    )
    from metatomic_ase import MetatomicCalculator

    atoms = structures()["crystal"]
    atoms.symbols[:] = "Cu"
    expected = calculated(atoms, model.calculator(level_of_theory="EMT", dtype=dtype))
    found = calculated(atoms, MetatomicCalculator(path, check_consistency=True))
    rounding = 2e-6 if dtype == "float32" else 1e-12
    assert found["energy"] == pytest.approx(expected["energy"], rel=rounding)
    for key in ("forces", "stress"):
        np.testing.assert_allclose(found[key], expected[key], atol=rounding * 5)
    assert np.abs(expected["forces"]).max() > 0.01


def systems_of(
    metatomic: ModuleType, model: Any, frames: list[Atoms], unit: str = "angstrom"
) -> Any:
    """Frames as metatomic's systems, with the neighbour lists that a model asks for."""
    import vesin.metatomic

    systems = metatomic.systems_to_torch(frames, dtype=torch.float64)
    for neighbours in vesin.metatomic.neighbor_lists_for_model(unit, model):
        for system in systems:
            neighbours.add_neighbor_list(system)
    return systems


def atoms_of_a_domain(
    metatomic: ModuleType, loaded: Any, frames: list[Atoms], selected: Any, kind: str
) -> np.ndarray:
    """The energies that an engine gets for the selected atoms."""
    from metatensor.torch import Labels

    labels = None
    if selected is not None:
        labels = Labels(["system", "atom"], torch.tensor(selected, dtype=torch.int32))
    outputs = {"energy": metatomic.ModelOutput(unit="eV", sample_kind=kind)}
    options = metatomic.ModelEvaluationOptions("angstrom", outputs, labels)
    out = loaded(systems_of(metatomic, loaded, frames), options, check_consistency=True)
    return out["energy"].block().values.squeeze(1).numpy()


# the conversion sets the slab's third cell vector to zero, and says so
@pytest.mark.filterwarnings("ignore:A conversion to `System`")
def test_many_systems_at_once_and_chosen_atoms(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    loaded = metatomic.load_atomistic_model(exported)
    frames = list(structures().values())
    calculator = model.calculator(dtype="float64")
    energies = [calculated(atoms, calculator)["energies"] for atoms in frames]

    every = atoms_of_a_domain(metatomic, loaded, frames, None, "atom")
    np.testing.assert_allclose(every, np.concatenate(energies), rtol=1e-12)

    sums = atoms_of_a_domain(metatomic, loaded, frames, None, "system")
    np.testing.assert_allclose(sums, [own.sum() for own in energies], rtol=1e-12)

    selected = [[0, 1], [0, 5], [2, 0], [5, 0]]
    chosen = [energies[system][atom] for system, atom in selected]
    found = atoms_of_a_domain(metatomic, loaded, frames, selected, "atom")
    np.testing.assert_allclose(found, chosen, rtol=1e-12)

    # systems of which no atom was chosen have an energy of zero
    sums = atoms_of_a_domain(metatomic, loaded, frames, selected, "system")
    expected = [chosen[0] + chosen[1], 0, chosen[2], 0, 0, chosen[3]]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


def test_a_domain_needs_only_what_lies_within_the_interaction_range(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    """A program with domains gives no cell, but copies of atoms around those of the domain."""
    loaded = metatomic.load_atomistic_model(exported)
    cell = structures()["crystal"]
    reach = loaded.capabilities().interaction_range
    assert reach == 2 * model.potential.config.cutoff

    # all copies that the domain can feel, the domain in the middle of them
    around = cell.repeat((5, 7, 7))
    around.positions -= 2 * cell.cell[0] + 3 * cell.cell[1] + 3 * cell.cell[2]
    vectors = around.positions[:, None] - cell.positions[None]
    distance = np.linalg.norm(vectors, axis=2)
    around = around[distance.min(1) <= reach]

    # (system, atom) of the domain's own atoms among them
    own = []
    for position in cell.positions:
        nearest = np.argmin(np.linalg.norm(around.positions - position, axis=1))
        own.append([0, int(nearest)])

    around.set_cell(None)
    around.pbc = False
    expected = calculated(cell, model.calculator(dtype="float64"))["energies"]
    found = atoms_of_a_domain(metatomic, loaded, [around], own, "atom")
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-12)


def test_the_file_says_what_it_is(exported: Path, metatomic: ModuleType) -> None:
    loaded = metatomic.load_atomistic_model(exported)
    capabilities = loaded.capabilities()
    assert capabilities.dtype == "float64"
    assert capabilities.length_unit == "angstrom"
    assert capabilities.atomic_types == [1, 6, 8, 29, 79]
    assert capabilities.outputs["energy"].unit == "eV"
    assert "Level of theory: PBE. Licence: CC0-1.0" in loaded.metadata().description
    with zipfile.ZipFile(exported) as archive:
        (extensions,) = (name for name in archive.namelist() if name.endswith("extra/extensions"))
        # otherwise the file would demand what this process happened to load
        assert json.loads(archive.read(extensions)) == []


def test_units_of_the_engine_are_converted(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    from ase.units import Bohr, Hartree

    atoms = structures()["molecule"]
    energy = calculated(atoms, model.calculator(dtype="float64"))["energy"]
    atoms.positions /= Bohr
    loaded = metatomic.load_atomistic_model(exported)
    systems = systems_of(metatomic, loaded, [atoms], "bohr")
    outputs = {"energy": metatomic.ModelOutput(unit="hartree")}
    out = loaded(systems, metatomic.ModelEvaluationOptions("bohr", outputs), check_consistency=True)
    assert float(out["energy"].block().values) * Hartree == pytest.approx(energy, rel=1e-7)


def test_unknown_elements_are_refused(exported: Path, metatomic: ModuleType) -> None:
    from metatomic_ase import MetatomicCalculator

    atoms = bulk("Fe")
    atoms.calc = MetatomicCalculator(exported)
    with pytest.raises(Exception, match="does not support the atomic type '26'"):
        atoms.get_potential_energy()


# i-PI uses names that Python deprecates, and leaves files open until they are collected
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("beads", [1, 2])
def test_i_pi_runs_the_file_with_its_own_driver(
    model: model_zoo.LoadedModel,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beads: int,
) -> None:
    """Classical dynamics and a path integral end with the calculator's forces and virial."""
    pytest.importorskip("ipi", reason="comes with the extra `engines`")
    from ipi.utils.scripting import InteractiveSimulation

    # i-PI's eV is not quite ASE's
    from ipi.utils.units import unit_to_user

    monkeypatch.chdir(tmp_path)
    ase.io.write("start.extxyz", structures()["crystal"])
    program_input = dynamics_input("metatomic", beads, model=exported, check_consistency=True)
    run = InteractiveSimulation(program_input)
    run.run(10)
    system = run.syslist[0]

    for bead in range(beads):
        atoms = ase.io.read("start.extxyz")
        atoms.set_cell(unit_to_user("length", "angstrom", system.cell.h.T))
        positions = unit_to_user("length", "angstrom", system.beads.q[bead])
        atoms.positions[:] = positions.reshape(-1, 3)
        atoms.calc = model.calculator(dtype="float64")

        forces = unit_to_user("force", "ev/ang", system.forces.f[bead]).reshape(-1, 3)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-8)

        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        found = unit_to_user("energy", "electronvolt", system.forces.virs[bead])
        # i-PI leaves the lower half empty
        np.testing.assert_allclose(np.triu(found), np.triu(virial), atol=1e-8)

        energy = unit_to_user("energy", "electronvolt", system.forces.pots[bead])
        assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    assert np.abs(atoms.get_forces()).max() > 0.01

    # collected here, not in another test
    del run, system
    gc.collect()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small.model", {}, "end in .pt"),
        ("small.pt", {"dtype": "float16"}, "choose float32 or float64"),
        ("small.pt", {"level_of_theory": "HF"}, "the model has PBE, EMT"),
    ],
)
def test_options_that_cannot_be_exported(
    model: model_zoo.LoadedModel, tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(EvenfieldError, match=message):
        model_zoo.export_metatomic(model, tmp_path / "new" / name, **options)
    assert not (tmp_path / "new").exists()


def test_level_without_elements_is_refused(tmp_path: Path) -> None:
    bare = small(tmp_path / "bare")
    bare.record.elements.clear()
    with pytest.raises(EngineError, match="no element is listed for PBE"):
        model_zoo.export_metatomic(bare, tmp_path / "small.pt")


def test_missing_package(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # imported by other tests already, so it must be forgotten to be imported again
    monkeypatch.delitem(sys.modules, "evenfield.model_zoo.engines.metatomic_model", raising=False)
    monkeypatch.setitem(sys.modules, "metatensor.torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'evenfield\[metatomic\]'"):
        model_zoo.export_metatomic(model, tmp_path / "small.pt")


def test_a_failed_export_leaves_the_file_before(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenfield.model_zoo.engines import metatomic_model

    def cut(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metatomic_model, "write", lambda *arguments: cut(arguments[3]))
    (tmp_path / "small.pt").write_bytes(b"whole")
    with pytest.raises(FileError, match=r"small\.pt: No space left"):
        model_zoo.export_metatomic(model, tmp_path / "small.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]
    assert (tmp_path / "small.pt").read_bytes() == b"whole"


def test_command(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenfield.model_zoo.engines import metatomic_model

    def write(
        model: model_zoo.LoadedModel, level: str, dtype: str, path: Path, heads: object
    ) -> None:
        assert heads is None
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("emt/code/__torch__/evenfield/model.py", f"{level} {dtype}")

    def content() -> str:
        with zipfile.ZipFile(tmp_path / "emt.pt") as archive:
            return archive.read("emt/code/__torch__/evenfield/model.py").decode()

    # compiling the shipped model would take most of a minute
    monkeypatch.setattr(metatomic_model, "write", write)
    words = ["hub", "export-metatomic", "evenfield-s", str(tmp_path / "emt.pt")]
    done = CliRunner().invoke(app, [*words, "--level-of-theory", "EMT"])
    assert done.exit_code == 0, done.output
    assert content() == "EMT float64"

    again = [*words, "--level-of-theory", "GFN1-xTB"]
    refused = CliRunner().invoke(app, again)
    assert "already exists and holds a metatomic file" in str(refused.exception)
    assert content() == "EMT float64"
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    assert content() == "GFN1-xTB float64"
