"""Heads that turn with the structure, or change sign in the mirror; what the network carries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from pydantic import ValidationError
from safetensors.numpy import load, save
from scipy.spatial.transform import Rotation

from evenfield import model_zoo
from evenfield.model_zoo.heads.description import KINDS, HeadError
from evenfield.model_zoo.heads.features import carried_features
from evenfield.model_zoo.heads.record import HEADS, heads_file, heads_of
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.package.weights import metadata

from labelled_molecules import ROTATING, molecular_model, molecules, rotating_head


KINDS_THAT_ROTATE = (
    "dipole",
    "vector",
    "tensor",
    "polarizability",
    "pseudoscalar",
    "atom_vector",
    "atom_tensor",
    "forces",
)
# largest error of an answer of about 1, by precision of the network
TOLERANCE = {"float32": 2e-4, "float64": 1e-11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = molecular_model(tmp_path_factory.mktemp("rotating") / "model", **ROTATING)
    potential = model_zoo.load(path).potential
    names = {"forces": "direct_forces"}
    heads = {}
    for kind in KINDS_THAT_ROTATE:
        name = names.get(kind, kind)
        heads[name] = rotating_head(kind, potential, name=name)
    heads["handed"] = rotating_head("pseudoscalar", potential, name="handed", extensive=True)
    attach(path, {HEADS: heads_file(potential, heads)})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


@pytest.fixture
def atoms() -> Atoms:
    # rattled methanol, which is no mirror image of itself
    return molecules(copies=1)[4]


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions = atoms.positions @ matrix.T
    return copy


def answers(model: LoadedModel, atoms: Atoms, dtype: str) -> dict[str, np.ndarray]:
    """What all heads say on the features of a network in a precision."""
    potential = model.calculator(dtype=dtype).potential
    (features,) = carried_features(potential, [atoms])
    return {name: np.asarray(head.predict(features, atoms)) for name, head in model.heads.items()}


def moved_by(matrix: np.ndarray, answer: np.ndarray, rank: int, parity: int) -> np.ndarray:
    """An answer of the structure, or one for each atom, that was moved by an orthogonal matrix."""
    sign = np.linalg.det(matrix)
    if rank == 0:
        return answer * (1.0 if parity == 1 else sign)
    return answer @ matrix.T if rank == 1 else matrix @ answer @ matrix.T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inverted", [False, True])
def test_every_kind_moves_with_the_structure(model, atoms, dtype, inverted) -> None:
    matrix = Rotation.random(random_state=1).as_matrix() * (-1 if inverted else 1)
    before = answers(model, atoms, dtype)
    after = answers(model, turned(atoms, matrix), dtype)
    for name, head in model.heads.items():
        size = np.abs(before[name]).max()
        assert size > 1e-3, name
        expected = moved_by(matrix, before[name], head.description.rank, head.description.parity)
        error = np.abs(after[name] - expected).max() / size
        assert error < TOLERANCE[dtype], (name, error)
        assert np.abs(after[name] - before[name]).max() > 1e-3 * size or (
            name in ("pseudoscalar", "handed") and not inverted
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
def test_inversion_flips_the_sign(model, atoms, dtype, tolerance) -> None:
    # to rounding: the points on the sphere at which the network multiplies are a fixed sum
    before = answers(model, atoms, dtype)
    after = answers(model, turned(atoms, -np.eye(3)), dtype)
    for name in ("pseudoscalar", "handed"):
        assert abs(before[name]) > 1e-3
        assert after[name] == pytest.approx(-before[name], rel=tolerance)


def test_a_mirror_image_of_itself_has_no_pseudoscalar(model) -> None:
    flat = Atoms("OH2", [[0, 0, 0], [0.9, 0.3, 0], [-0.2, 0.95, 0]])
    assert abs(model.predict(flat, "pseudoscalar")) < 1e-14
    assert np.abs(model.predict(flat, "dipole")[:2]).min() > 1e-3
    assert abs(model.predict(flat, "dipole")[2]) < 1e-13


def test_tensors_are_symmetric_and_sums(model, atoms) -> None:
    far = atoms.copy()
    far.positions += [30.0, 0.0, 0.0]
    for name in ("tensor", "polarizability"):
        tensor = model.predict(atoms, name)
        np.testing.assert_allclose(tensor, tensor.T, atol=1e-13)
        np.testing.assert_allclose(model.predict(atoms + far, name), 2 * tensor, rtol=1e-10)
    vector = model.predict(atoms, "vector")
    np.testing.assert_allclose(model.predict(atoms + far, "vector"), 2 * vector, rtol=1e-9)
    for name, factor in (("pseudoscalar", 1), ("handed", 2)):
        expected = factor * model.predict(atoms, name)
        assert model.predict(atoms + far, name) == pytest.approx(expected, rel=1e-10)


def test_dipole_with_atomic_dipoles_does_not_depend_on_the_origin(model, atoms) -> None:
    moved = atoms.copy()
    moved.positions += [100.0, -30.0, 7.0]
    np.testing.assert_allclose(
        model.predict(moved, "dipole"), model.predict(atoms, "dipole"), atol=1e-10
    )


def test_calculator_gives_them_under_their_names(model, atoms) -> None:
    atoms.calc = model.calculator(heads=True)
    np.testing.assert_allclose(
        atoms.get_dipole_moment(), model.predict(atoms, "dipole"), atol=1e-10
    )
    for name in model.heads:
        np.testing.assert_allclose(atoms.calc.results[name], model.predict(atoms, name), atol=1e-10)
    # its charges are only a part of such a dipole
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_charges()


def test_tensors_of_atoms_are_symmetric_and_their_own(model, atoms) -> None:
    far = atoms.copy()
    far.positions += [30.0, 0.0, 0.0]
    for name in ("atom_vector", "atom_tensor"):
        alone = model.predict(atoms, name)
        np.testing.assert_allclose(model.predict(atoms + far, name)[: len(atoms)], alone, rtol=1e-9)
    np.testing.assert_allclose(alone, np.swapaxes(alone, 1, 2), atol=1e-13)
    # the terms of a sum
    summed = rotating_head("tensor", model.potential)
    (features,) = carried_features(model.potential, [atoms])
    np.testing.assert_allclose(alone.sum(axis=0), summed.predict(features, atoms), rtol=1e-10)


def test_direct_forces_have_no_sum(model, atoms) -> None:
    forces = model.predict(atoms, "direct_forces")
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-12)


def test_two_polarizabilities_have_to_be_chosen(model) -> None:
    other = rotating_head("polarizability", model.potential, name="alpha_pbe")
    both = {"polarizability": model.heads["polarizability"], "alpha_pbe": other}
    attachments = {HEADS: heads_file(model.potential, both)}
    two = LoadedModel(model.potential, model.record, "two", attachments=attachments)
    with pytest.raises(HeadError, match="polarizability and alpha_pbe both give polarizability"):
        two.calculator(heads=True)
    assert two.calculator(heads=["alpha_pbe"]) is not None


# --- storage


def test_round_trip_through_save_publish_and_load(model, folder, tmp_path, atoms) -> None:
    published = model_zoo.publish(
        folder, "me/rotating", folder_hub=tmp_path / "hub", allow_failed=True
    )
    other = model_zoo.load(published, folder_hub=tmp_path / "hub")
    for name in model.heads:
        np.testing.assert_array_equal(other.predict(atoms, name), model.predict(atoms, name))
    assert heads_file(model.potential, other.heads) == model.attachments[HEADS]
    card = (folder / "README.md").read_text()
    assert "a number that changes sign in the mirror" in card


def test_heads_of_other_weights_are_refused(folder, tmp_path, atoms) -> None:
    stranger = model_zoo.load(molecular_model(tmp_path / "other", seed=1, **ROTATING))
    mixed = LoadedModel(
        stranger.potential,
        stranger.record,
        "mixed",
        attachments={HEADS: (folder / HEADS).read_bytes()},
    )
    assert mixed.heads == {}
    with pytest.raises(HeadError, match="belongs to other weights"):
        mixed.predict(atoms, "polarizability")


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_damaged_random_functions_are_no_head(model, damage) -> None:
    content = model.attachments[HEADS]
    tensors = dict(load(content))
    if damage == "missing":
        del tensors["0/mixtures"]
    elif damage == "shape":
        tensors["0/gates"] = tensors["0/gates"][:, 1:].copy()
    else:
        tensors["1/gate_biases"] = tensors["1/gate_biases"] * np.nan
    broken = save(tensors, {"evenfield": json.dumps(metadata(content))})
    assert heads_of(model.potential, {HEADS: broken}) == {}


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("tensor", {"extensive": True}),
        ("vector", {"name": "dipole"}),
        ("pseudoscalar", {"name": "energy"}),
        ("forces", {"name": "forces"}),
        ("forces", {"name": "direct_forces", "silent_elements": ["H"]}),
        ("atom_vector", {"silent_elements": ["H", "C", "N", "O"]}),
        ("atom_vector", {"silent_elements": ["He"]}),
        ("forces", {"name": "direct_forces", "spread": True}),
    ],
)
def test_descriptions_that_contradict_themselves(model, kind, facts) -> None:
    with pytest.raises(ValidationError):
        rotating_head(kind, model.potential, **facts)


def test_kinds_know_how_they_transform(model) -> None:
    known = {name: (kind.rank, kind.parity) for name, kind in KINDS.items()}
    assert known["pseudoscalar"] == (0, -1) and known["scalar"] == (0, 1)
    assert known["vector"] == known["dipole"] == (1, -1)
    assert known["tensor"] == known["polarizability"] == known["atom_tensor"] == (2, 1)
    assert known["forces"] == known["atom_vector"] == (1, -1)


# --- what networks carry


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({"l_max": 2, "num_layers": 2}, (12, 8)),
        ({"l_max": 1, "num_layers": 1}, (4, 0)),
        ({"l_max": 2, "num_layers": 2, "l_hidden": 0}, (8, 8)),
        ({"l_max": 0, "num_layers": 1, "l_hidden": 0}, (0, 0)),
    ],
)
def test_numbers_of_vectors_and_tensors(tmp_path, atoms, network, expected) -> None:
    potential = model_zoo.load(molecular_model(tmp_path / "model", **network)).potential
    (features,) = carried_features(potential, [atoms])
    assert potential.backbone.num_carried == expected
    assert (features.vectors.shape[2], features.tensors.shape[3]) == expected
    (plain,) = carried_features(potential, [atoms], "network")
    torch.testing.assert_close(features.invariants, plain.invariants, rtol=0, atol=0)
    assert plain.vectors.shape == (len(atoms), 3, 0)
    trace = features.tensors.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, torch.zeros_like(trace), rtol=0, atol=1e-14)
