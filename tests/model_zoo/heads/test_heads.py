"""Heads: how their predictions transform, how they are stored, and to which weights they belong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from pydantic import ValidationError
from safetensors.numpy import load, save
from scipy.spatial.transform import Rotation

from evenfield import model_zoo
from evenfield.model_zoo.heads.description import RESERVED, HeadError
from evenfield.model_zoo.heads.features import atom_features
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.heads.record import HEADS, heads_file, heads_of
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.hub.publish import plan_publication
from evenfield.model_zoo.network.interface import CarriedFeatures
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.package.weights import metadata
from evenfield.model_zoo.uncertainty.estimates import ADDED

from labelled_molecules import molecular_model, molecules, planted_head


CLASSES = ["stable", "unstable"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of each kind."""
    path = molecular_model(tmp_path_factory.mktemp("heads") / "model")
    potential = model_zoo.load(path).potential
    num_features = potential.backbone.num_features
    heads = [
        planted_head("charges", num_features, name="charges"),
        planted_head("dipole", num_features, seed=2),
        planted_head("scalar", num_features, name="gap", unit="eV"),
        planted_head("scalar", 8, name="volume", unit="A^3", extensive=True, features="readout"),
        planted_head("class", num_features, name="phase", unit="probability", classes=CLASSES),
    ]
    named = {head.description.name: head for head in heads}
    attach(path, {HEADS: heads_file(potential, named)})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


@pytest.fixture
def atoms() -> Atoms:
    return molecules(copies=1)[4]


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions = atoms.positions @ matrix.T
    return copy


def model_with(head: Head, *, at: Path, model: LoadedModel) -> LoadedModel:
    """A copy of the model in another folder with this head alone."""
    name = head.description.name
    file = {HEADS: heads_file(model.potential, {name: head})}
    return model_zoo.load(model_zoo.save_model(at, model.potential, model.record, attachments=file))


# --- how predictions transform


@pytest.mark.parametrize("inverted", [False, True])
def test_rotation_and_inversion_of_every_kind(model, atoms, inverted) -> None:
    matrix = Rotation.random(random_state=1).as_matrix() * (-1 if inverted else 1)
    other = turned(atoms, matrix)

    assert np.ptp(model.predict(atoms, "charges")) > 0.01
    np.testing.assert_allclose(
        model.predict(other, "charges"), model.predict(atoms, "charges"), atol=1e-10
    )
    dipole = model.predict(atoms, "dipole")
    assert np.linalg.norm(dipole) > 0.01
    np.testing.assert_allclose(model.predict(other, "dipole"), matrix @ dipole, atol=1e-10)
    for name in ("gap", "volume"):
        assert model.predict(other, name) == pytest.approx(model.predict(atoms, name), abs=1e-10)
    assert model.predict(other, "phase") == pytest.approx(model.predict(atoms, "phase"), abs=1e-10)


def test_charges_add_up_to_the_net_charge(model, atoms) -> None:
    for charge in (0.0, 1.0, -2.0):
        atoms.info["charge"] = charge
        assert model.predict(atoms, "charges").sum() == pytest.approx(charge, abs=1e-13)


def test_dipole_does_not_depend_on_the_origin(model, atoms) -> None:
    moved = atoms.copy()
    moved.positions += [100.0, -30.0, 7.0]
    np.testing.assert_allclose(
        model.predict(moved, "dipole"), model.predict(atoms, "dipole"), atol=1e-10
    )


def test_dipole_is_that_of_its_charges(model, atoms) -> None:
    head = model.heads["dipole"]
    (features,) = atom_features(model.potential, [atoms])
    charges = head.charges(features, atoms)
    np.testing.assert_allclose(
        model.predict(atoms, "dipole"), charges @ atoms.positions, atol=1e-10
    )


def test_two_far_copies_are_twice_extensive_and_once_intensive(model, atoms) -> None:
    copy = atoms.copy()
    copy.positions += [40.0, 0.0, 0.0]
    pair = atoms + copy
    for name, factor in (("volume", 2), ("gap", 1)):
        expected = factor * model.predict(atoms, name)
        assert model.predict(pair, name) == pytest.approx(expected, rel=1e-10)


def test_order_of_atoms_and_batches_do_not_matter(model, atoms) -> None:
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(
        model.predict(atoms[order], "charges"), model.predict(atoms, "charges")[order], atol=1e-10
    )
    frames = molecules(copies=30)
    together = list(atom_features(model.potential, frames))
    assert [len(part) for part in together] == [len(one) for one in frames]
    for place in (0, 150, -1):
        (alone,) = atom_features(model.potential, [frames[place]])
        np.testing.assert_allclose(together[place], alone, atol=1e-10)


def test_point_charges_give_the_dipole_of_the_textbook() -> None:
    # a bias of -0.4 on O and 0.2 on H, and no feature: the three charges of water are these
    head = planted_head("dipole", 3)
    bias = np.array([[0.2, 0.0, 0.0, -0.4]])
    head = dataclasses.replace(head, weight=np.zeros((1, 3)), bias=bias)
    water = molecule("H2O")
    expected = 0.2 * (water.positions[1] + water.positions[2] - 2 * water.positions[0])
    features = np.zeros((3, 3))
    np.testing.assert_allclose(head.charges(features, water), [-0.4, 0.2, 0.2], atol=1e-15)
    carried = CarriedFeatures.of_invariants(torch.as_tensor(features))
    np.testing.assert_allclose(head.predict(carried, water), expected, atol=1e-15)


# --- use


def test_ase_finds_charges_and_dipole(model, atoms) -> None:
    atoms.calc = model.calculator(heads=True)
    np.testing.assert_allclose(atoms.get_charges(), model.predict(atoms, "charges"), atol=1e-10)
    dipole = model.predict(atoms, "dipole")
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole, atol=1e-10)
    results = atoms.calc.results
    assert results["gap"] == pytest.approx(model.predict(atoms, "gap"))
    assert results["phase"] == pytest.approx(list(model.predict(atoms, "phase").values()))
    plain = model.calculator()
    assert plain.get_potential_energy(atoms) == atoms.get_potential_energy()
    assert "charges" not in plain.results and "charges" not in plain.implemented_properties
    # what ASE writes has nothing that it has no name for
    assert "gap" not in atoms.calc.export_properties()


def test_named_heads_alone(model, atoms) -> None:
    atoms.calc = model.calculator(heads=["dipole"])
    atoms.get_potential_energy()
    assert "gap" not in atoms.calc.results
    head = model.heads["dipole"]
    (features,) = atom_features(model.potential, [atoms])
    # without a charge head, the charges are those that give the dipole
    np.testing.assert_allclose(atoms.get_charges(), head.charges(features, atoms), atol=1e-10)


def test_a_changed_net_charge_is_noticed(model, atoms) -> None:
    atoms.calc = model.calculator(heads=["charges"])
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-12)
    atoms.info["charge"] = 1
    assert atoms.get_charges().sum() == pytest.approx(1)


def test_a_structure_without_a_dipole_keeps_its_charges(model, atoms) -> None:
    charged = atoms.copy()
    charged.info["charge"] = -1
    periodic = bulk("C")
    reasons = {"periodic structure": periodic, "depends on the origin": charged}
    for reason, structure in reasons.items():
        structure.calc = model.calculator(heads=["dipole"])
        assert len(structure.get_charges()) == len(structure)
        with pytest.raises(PropertyNotImplementedError, match=reason):
            structure.get_dipole_moment()
        with pytest.raises(HeadError, match=reason):
            model.predict(structure, "dipole")


def test_elements_that_the_fit_has_not_seen_are_refused(model, tmp_path, atoms) -> None:
    head = model.heads["gap"]
    facts = head.description.model_copy(update={"elements": ["H", "C"]})
    narrow = model_with(Head(facts, head.weight, head.bias[:, :2]), at=tmp_path / "m", model=model)
    with pytest.raises(HeadError, match="gap was fitted without O: it knows H, C"):
        narrow.predict(molecule("H2O"), "gap")
    water = molecule("H2O")
    water.calc = narrow.calculator(heads=True)
    with pytest.raises(HeadError, match="fitted without O"):
        water.get_potential_energy()
    assert np.isfinite(narrow.predict(molecule("CH4"), "gap"))


def test_two_heads_of_one_property_have_to_be_chosen(model, tmp_path) -> None:
    head = model.heads["dipole"]
    other = head.description.model_copy(update={"name": "dipole_pbe"})
    both = {"dipole": head, "dipole_pbe": Head(other, head.weight, head.bias)}
    file = {HEADS: heads_file(model.potential, both)}
    where = model_zoo.save_model(tmp_path / "two", model.potential, model.record, attachments=file)
    two = model_zoo.load(where)
    with pytest.raises(HeadError, match=r"dipole and dipole_pbe both give dipole.*heads=\["):
        two.calculator(heads=True)
    assert two.calculator(heads=["dipole_pbe"]).implemented_properties[-2:] == ["dipole", "charges"]


def test_names_that_no_head_has(model, folder, tmp_path) -> None:
    with pytest.raises(HeadError, match="colour: the model has no such head: it has charges, dip"):
        model.predict(molecule("H2O"), "colour")
    with pytest.raises(HeadError, match="no such head"):
        model.calculator(heads=["colour"])
    bare = model_zoo.load(molecular_model(tmp_path / "bare"))
    assert bare.heads == {}
    with pytest.raises(HeadError, match="has no heads: fit one with `evenfield finetune head"):
        bare.predict(molecule("H2O"), "gap")
    with pytest.raises(HeadError, match="no heads with its weights"):
        bare.calculator(heads=True)


# --- storage


def test_round_trip_through_save_publish_and_load(model, folder, tmp_path, atoms) -> None:
    published = model_zoo.publish(
        folder, "me/heads", folder_hub=tmp_path / "hub", allow_failed=True
    )
    other = model_zoo.load(published, folder_hub=tmp_path / "hub")
    assert list(other.heads) == list(model.heads)
    for name, head in model.heads.items():
        assert other.heads[name].description == head.description
        np.testing.assert_array_equal(other.heads[name].weight, head.weight)
        np.testing.assert_array_equal(other.heads[name].bias, head.bias)
    assert other.predict(atoms, "gap") == model.predict(atoms, "gap")
    # a copy is the same file
    heads = heads_of(model.potential, model.attachments)
    assert heads_file(model.potential, heads) == model.attachments[HEADS]


def test_publishing_asks_for_the_licence_of_the_labels(folder) -> None:
    advice = plan_publication(folder, "me/heads").advice
    assert "licence of the labels of the head gap" in advice


def test_card_and_manifest_list_the_heads(folder) -> None:
    card = (folder / "README.md").read_text()
    assert "## Other properties" in card
    assert "| `gap` | a number of the structure (mean over the atoms) | eV | planted" in card
    assert "stable; unstable" in card and "mae 0.250 | mae 0.500" in card
    assert HEADS in json.loads((folder / "manifest.json").read_text())["files"]


def test_heads_of_other_weights_are_refused(model, folder, tmp_path) -> None:
    stranger = model_zoo.load(molecular_model(tmp_path / "other", seed=1))
    with_theirs = model_zoo.save_model(
        tmp_path / "mixed",
        stranger.potential,
        stranger.record,
        attachments={HEADS: (folder / HEADS).read_bytes()},
    )
    mixed = model_zoo.load(with_theirs)
    assert mixed.heads == {}
    assert "Other properties" not in (with_theirs / "README.md").read_text()
    with pytest.raises(HeadError, match="belongs to other weights"):
        mixed.predict(molecule("H2O"), "gap")


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "extra", "no file", "classes"])
def test_a_damaged_record_is_none(model, damage) -> None:
    content = model.attachments[HEADS]
    about = metadata(content)
    tensors = dict(load(content))
    if damage == "missing":
        del tensors["0/bias"]
    elif damage == "shape":
        tensors["0/weight"] = tensors["0/weight"][:, 1:].copy()
    elif damage == "nan":
        tensors["1/bias"] = tensors["1/bias"] * np.nan
    elif damage == "extra":
        tensors["9/bias"] = tensors["0/bias"]
    elif damage == "classes":
        about["heads"][-1]["classes"] = ["only"]
    broken = b"x" if damage == "no file" else save(tensors, {"evenfield": json.dumps(about)})
    assert heads_of(model.potential, {HEADS: broken}) == {}
    assert len(heads_of(model.potential, {HEADS: content})) == 5


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("scalar", {"name": "energy"}),
        ("scalar", {"name": "forces_radius"}),
        ("scalar", {"name": "two words"}),
        ("dipole", {"extensive": True}),
        ("class", {"name": "phase"}),
        ("scalar", {"name": "gap", "classes": CLASSES}),
        ("scalar", {"name": "gap", "colour": "red"}),
    ],
)
def test_descriptions_that_contradict_themselves(kind, facts) -> None:
    with pytest.raises(ValidationError):
        planted_head(kind, 3, **facts)
    assert planted_head("dipole", 3).description.parity == -1
    assert planted_head("charges", 3).description.per == "atom"
    assert planted_head("dipole", 3).description.rank == 1


def test_no_head_takes_the_place_of_an_uncertainty() -> None:
    assert set(ADDED) <= RESERVED
