"""Model folders, the folder hub, the card, and the calculator that comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from huggingface_hub import ModelCard

from evenfield import model_zoo
from evenfield.core.files import FileError
from evenfield.model_zoo import BadModelError, HubError
from evenfield.model_zoo.engines.errors import UnseenElementError

from small_models import rewrite


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json in place, with a manifest that fits."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    text = json.dumps(config)
    rewrite(folder, "config.json", text.encode())


def test_publish_and_load_by_reference_is_bit_identical(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    reference = model_zoo.publish(folder, "me/copper", hub)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1)

    results = []
    for name in (folder, "me/copper", reference):
        atoms.calc = model_zoo.load(name, hub).calculator()
        energy = atoms.get_potential_energy()
        forces = atoms.get_forces().tobytes()
        stress = atoms.get_stress().tobytes()
        results.append((energy, forces, stress))
    assert results[0] == results[1] == results[2]

    # publishing the same model again makes no new revision
    assert model_zoo.publish(folder, "me/copper", hub) == reference


def test_weights_have_the_same_hash_in_another_process(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from evenfield.model_zoo import load, save_model; model = load(sys.argv[1])\n"
        "files = model.attachments\n"
        "save_model(sys.argv[2], model.potential, model.record, attachments=files)"
    )
    again = tmp_path / "again"
    # another process has another seed for the hashes of texts, and so another order of sets
    subprocess.run([sys.executable, "-c", script, str(folder), str(again)], check=True)
    for name in ("model.safetensors", "config.json", "README.md"):
        first = (folder / name).read_bytes()
        second = (again / name).read_bytes()
        assert first == second, name


def test_card_is_valid_hub_metadata(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "evenfield"
    assert card.data.license == "apache-2.0"
    assert card.data.to_dict()["mlip"]["elements"]["EMT"] == ["Cu", "Au"]
    assert "Au" in card.text.split("use with care")[1]


def test_publishing_needs_licence_and_training_data(folder: Path, tmp_path: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    bare = record.model_copy(update={"licence": None, "training_data": []})
    model_zoo.save_model(tmp_path / "bare", potential, bare)
    hub = tmp_path / "hub"
    with pytest.raises(BadModelError, match="lacks licence, training data"):
        model_zoo.publish(tmp_path / "bare", "me/copper", hub)
    # refused before the hub was touched
    assert not hub.exists()


def test_tampered_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadModelError, match=r"model\.safetensors.*sha256"):
        model_zoo.load(folder)


def test_newer_format_is_refused(folder: Path) -> None:
    change_config(folder, lambda config: config.update(format_version=999))
    with pytest.raises(BadModelError, match=r"format 999 is newer.*upgrade evenfield"):
        model_zoo.load(folder)


def test_wrong_tensors_are_named(folder: Path) -> None:
    change_config(folder, lambda config: config["architecture"].update(channels=4))
    with pytest.raises(BadModelError, match=r"gates\.bias is \(48,\).*not \(24,\).*more"):
        model_zoo.load(folder)


def test_unknown_architecture_key_is_refused(folder: Path) -> None:
    change_config(folder, lambda config: config["architecture"].update(attention=True))
    with pytest.raises(BadModelError, match="attention"):
        model_zoo.load(folder)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("me/silver", "no such model"),
        ("me/copper@0123", "no revision 0123.*it has"),
        ("no slash", "neither a folder nor a reference"),
    ],
)
def test_wrong_references_say_what_there_is(
    folder: Path, tmp_path: Path, reference: str, message: str
) -> None:
    model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    with pytest.raises(HubError, match=message):
        model_zoo.load(reference, tmp_path / "hub")


def test_reference_that_no_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="name too long"):
        model_zoo.load("a" * 5000, tmp_path)


def test_calculator_drives_optimisation_and_dynamics(folder: Path) -> None:
    """NVE with conservative forces: the total energy varies far less than the kinetic energy."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model_zoo.load(folder).calculator(level_of_theory="EMT")
    before = atoms.get_potential_energy()
    optimiser = BFGS(atoms, logfile=None)
    optimiser.run(fmax=0.01, steps=20)
    assert atoms.get_potential_energy() < before

    # away from the minimum, so that there is motion
    atoms.rattle(0.05, seed=1)
    total = []
    kinetic = []

    def record() -> None:
        total.append(atoms.get_total_energy())
        kinetic.append(atoms.get_kinetic_energy())

    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.attach(record)
    dynamics.run(40)
    assert np.ptp(total) < 0.05 * np.ptp(kinetic)


def test_calculator_energies_sum_to_the_energy(folder: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = model_zoo.load(folder).calculator()
    energies = atoms.get_potential_energies()
    assert abs(energies.sum() - atoms.get_potential_energy()) < 1e-9
    assert energies[0] != 0.0


def test_element_that_the_level_never_saw_is_refused(folder: Path) -> None:
    atoms = bulk("Au")
    atoms.calc = model_zoo.load(folder).calculator(level_of_theory="PBE")
    with pytest.raises(UnseenElementError, match=r"Au: not among the 1 elements.*PBE"):
        atoms.get_potential_energy()

    # the same model at a level that saw gold
    atoms.calc = model_zoo.load(folder).calculator(level_of_theory="EMT")
    atoms.get_potential_energy()


def test_reference_energies_keep_float64(folder: Path) -> None:
    potential, _ = model_zoo.load_model(folder)
    # float32 would hold this number to 1e-4 eV only
    in_float32 = potential.to(torch.float32)
    assert in_float32.e0[0, 29].item() == -1234.56789012345
