"""The metatomic file beside the calculator, through metatomic's own ASE calculator and through i-PI's own driver."""

from __future__ import annotations

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
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig

from i_pi_input import dynamics_input


pytest.importorskip("metatomic", reason="comes with the extra `metatomic`")
LEVELS = {"PBE": ["Cu", "Au", "C", "O", "H"], "EMT": ["Cu"]}


def small(folder: Path, **architecture: Any) -> model_zoo.LoadedModel:
    """A model with E0 of a real size and heads that differ."""
    torch.manual_seed(0)
    sizes = {
        "channels": 4,
        "l_max": 2,
        "cutoff": 3.5,
        "readout_size": 8,
        "radial_hidden": 8,
    } | architecture
    potential = Potential(PotentialConfig(levels_of_theory=list(LEVELS), **sizes))
    potential.e0[:] = -torch.arange(2 * 119).view(2, 119) * 12.3456789
    potential.scale[:] = torch.tensor([5.0, 7.0])
    record = ModelRecord(name="small", licence="CC0-1.0", description="For tests.", elements=LEVELS)
    return model_zoo.load(model_zoo.save_model(folder, potential, record))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> model_zoo.LoadedModel:
    return small(tmp_path_factory.mktemp("metatomic") / "model")


@pytest.fixture(scope="module")
def exported(model: model_zoo.LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_zoo.export_metatomic(
        model, tmp_path_factory.mktemp("metatomic") / "new" / "small.pt"
    )


@pytest.fixture(scope="module")
def metatomic(exported: Path) -> ModuleType:
    """metatomic.torch, whose import the export has made safe (torch-geometric is in the way)."""
    import metatomic.torch

    return metatomic.torch


def structures() -> dict[str, Atoms]:
    """Periodic in all, some and no directions; of one atom with and without neighbours."""
    crystal, slab = bulk("Cu", cubic=True) * (2, 1, 1), bulk("Au", cubic=True)
    crystal.rattle(0.1, seed=0)
    crystal.symbols[0] = "Au"
    crystal.set_cell(crystal.cell.array + np.array([[0, 0.1, 0], [0, 0, 0], [0.2, 0, 0]]))
    slab.rattle(0.1, seed=1)
    slab.pbc = [True, True, False]
    strained = bulk("Cu")
    strained.set_cell(strained.cell.array * [1.0, 1.02, 0.97])
    close = Atoms("CO", [[0, 0, 0], [0, 0, 0.5]])  # deep in the core repulsion
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
    stress = atoms.get_stress() if atoms.pbc.all() else np.zeros(6)
    energies = atoms.get_potential_energies()
    return {
        "energy": atoms.get_potential_energy(),
        "energies": energies,
        "forces": atoms.get_forces(),
        "stress": stress,
    }


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered"
)  # metatomic-ase divides by the volume of a molecule
def test_it_gives_what_the_calculator_gives(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    """In float64, far below the 1e-5 eV/A that is asked for; metatomic checks every call for consistency."""
    from metatomic_ase import MetatomicCalculator

    own, other = (
        model.calculator(dtype="float64"),
        MetatomicCalculator(exported, check_consistency=True),
    )
    largest = 0.0
    for name, atoms in structures().items():
        expected, found = calculated(atoms, own), calculated(atoms, other)
        for key, value in expected.items():
            np.testing.assert_allclose(
                found[key], value, rtol=1e-12, atol=1e-9, err_msg=f"{name}: {key}"
            )
        largest = max(largest, float(np.abs(expected["forces"]).max()))
    assert largest > 10  # the repulsion took part


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
    """Frames with the neighbour lists that a model asks for."""
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

    labels = (
        None
        if selected is None
        else Labels(["system", "atom"], torch.tensor(selected, dtype=torch.int32))
    )
    outputs = {"energy": metatomic.ModelOutput(unit="eV", sample_kind=kind)}
    options = metatomic.ModelEvaluationOptions("angstrom", outputs, labels)
    out = loaded(systems_of(metatomic, loaded, frames), options, check_consistency=True)
    return out["energy"].block().values.squeeze(1).numpy()


@pytest.mark.filterwarnings(
    "ignore:A conversion to `System`"
)  # it sets the slab's third cell vector to zero
def test_many_systems_at_once_and_chosen_atoms(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    loaded, frames = metatomic.load_atomistic_model(exported), list(structures().values())
    energies = [
        calculated(atoms, model.calculator(dtype="float64"))["energies"] for atoms in frames
    ]

    every = atoms_of_a_domain(metatomic, loaded, frames, None, "atom")
    np.testing.assert_allclose(every, np.concatenate(energies), rtol=1e-12)
    sums = atoms_of_a_domain(metatomic, loaded, frames, None, "system")
    np.testing.assert_allclose(sums, [e.sum() for e in energies], rtol=1e-12)

    selected = [[0, 1], [0, 5], [2, 0], [5, 0]]
    chosen = [energies[system][atom] for system, atom in selected]
    np.testing.assert_allclose(
        atoms_of_a_domain(metatomic, loaded, frames, selected, "atom"), chosen, rtol=1e-12
    )
    sums = atoms_of_a_domain(metatomic, loaded, frames, selected, "system")
    np.testing.assert_allclose(
        sums, [chosen[0] + chosen[1], 0, chosen[2], 0, 0, chosen[3]], rtol=1e-12
    )


def test_a_domain_needs_only_what_lies_within_the_interaction_range(
    model: model_zoo.LoadedModel, exported: Path, metatomic: ModuleType
) -> None:
    """As an engine with domains sees it: no box, copies of atoms around its own, energies of its own alone."""
    loaded, cell = metatomic.load_atomistic_model(exported), structures()["crystal"]
    reach = loaded.capabilities().interaction_range
    assert reach == 2 * model.potential.config.cutoff
    around = cell.repeat((5, 7, 7))
    around.positions -= 2 * cell.cell[0] + 3 * cell.cell[1] + 3 * cell.cell[2]
    distance = np.linalg.norm(around.positions[:, None] - cell.positions[None], axis=2)
    around = around[distance.min(1) <= reach]
    own = [
        [0, int(np.argmin(np.linalg.norm(around.positions - p, axis=1)))] for p in cell.positions
    ]
    around.set_cell(None)
    around.pbc = False
    expected = calculated(cell, model.calculator(dtype="float64"))["energies"]
    found = atoms_of_a_domain(metatomic, loaded, [around], own, "atom")
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-12)


def test_the_file_says_what_it_is(exported: Path, metatomic: ModuleType) -> None:
    loaded = metatomic.load_atomistic_model(exported)
    has = loaded.capabilities()
    assert (has.dtype, has.length_unit, has.atomic_types) == (
        "float64",
        "angstrom",
        [1, 6, 8, 29, 79],
    )
    assert has.outputs["energy"].unit == "eV"
    assert "Level of theory: PBE. Licence: CC0-1.0" in loaded.metadata().description
    with zipfile.ZipFile(exported) as archive:
        (extensions,) = (name for name in archive.namelist() if name.endswith("extra/extensions"))
        assert (
            json.loads(archive.read(extensions)) == []
        )  # else it would ask for what this process happened to load


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


@pytest.mark.parametrize("beads", [1, 2])
def test_i_pi_runs_the_file_with_its_own_driver(
    model: model_zoo.LoadedModel,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beads: int,
) -> None:
    """Classical dynamics and a path integral: nothing of ours but the file; forces and virial as the calculator's."""
    pytest.importorskip("ipi", reason="comes with the extra `engines`")
    from ipi.utils.scripting import InteractiveSimulation
    from ipi.utils.units import unit_to_user  # its eV is not quite ASE's

    monkeypatch.chdir(tmp_path)
    ase.io.write("start.extxyz", structures()["crystal"])
    run = InteractiveSimulation(
        dynamics_input("metatomic", beads, model=exported, check_consistency=True)
    )
    run.run(10)
    system = run.syslist[0]
    for bead in range(beads):
        atoms = ase.io.read("start.extxyz")
        atoms.set_cell(unit_to_user("length", "angstrom", system.cell.h.T))
        atoms.positions[:] = unit_to_user("length", "angstrom", system.beads.q[bead]).reshape(-1, 3)
        atoms.calc = model.calculator(dtype="float64")
        forces = unit_to_user("force", "ev/ang", system.forces.f[bead]).reshape(-1, 3)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-8)
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        found = unit_to_user(
            "energy", "electronvolt", system.forces.virs[bead]
        )  # its lower half is left empty
        np.testing.assert_allclose(np.triu(found), np.triu(virial), atol=1e-8)
        energy = unit_to_user("energy", "electronvolt", system.forces.pots[bead])
        assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    assert np.abs(atoms.get_forces()).max() > 0.01


def test_what_cannot_be_exported_is_refused(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "small.pt"
    for path, kind, message in [
        (tmp_path / "small.model", {}, "end in .pt"),
        (out, {"dtype": "float16"}, "choose float32 or float64"),
        (out, {"level_of_theory": "HF"}, "the model has PBE, EMT"),
    ]:
        with pytest.raises(ValueError, match=message):
            model_zoo.export_metatomic(model, path, **kind)
    bare = small(tmp_path / "bare")
    bare.record.elements.clear()
    with pytest.raises(ValueError, match="lists no element for PBE"):
        model_zoo.export_metatomic(bare, out)
    monkeypatch.setitem(sys.modules, "evenfield.model_zoo.engines.metatomic_model", None)
    with pytest.raises(ValueError, match=r"pip install 'evenfield\[metatomic\]'"):
        model_zoo.export_metatomic(model, out)
    assert not out.parent.exists()


def test_a_failed_export_leaves_the_file_before(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenfield.model_zoo.engines import metatomic_model

    def cut(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metatomic_model, "write", lambda *args: cut(args[3]))
    (tmp_path / "small.pt").write_bytes(b"whole")
    with pytest.raises(OSError, match="No space left"):
        model_zoo.export_metatomic(model, tmp_path / "small.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]
    assert (tmp_path / "small.pt").read_bytes() == b"whole"


def test_command(
    model: model_zoo.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evenfield.model_zoo.engines import metatomic_model

    monkeypatch.setattr(
        metatomic_model, "write", lambda m, level, dtype, path: path.write_text(f"{level} {dtype}")
    )
    arguments = [
        "hub",
        "export-metatomic",
        "evenfield-s",
        str(tmp_path / "emt.pt"),
        "--level-of-theory",
        "EMT",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "emt.pt").read_text() == "EMT float64"
