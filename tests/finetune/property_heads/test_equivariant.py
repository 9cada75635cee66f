"""Heads that rotate, fitted: planted weights are found, hands are told apart, misuse is named."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import SettingsError, load_settings
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.figures import relative_figures, sign_figures
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.model_zoo.heads.features import carried_features
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import ROTATING, molecular_model, molecules, write_labelled


UNITS = {"vector": "D", "tensor": "B", "polarizability": "e*A^2/V", "pseudoscalar": "deg"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return model_zoo.load(molecular_model(tmp_path_factory.mktemp("fit") / "model", **ROTATING))


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return molecules(copies=12)


def configured(*words: str) -> HeadConfig:
    return load_settings(HeadConfig, None, list(words))


def quiet(text: str) -> None:
    """Say nothing."""


def labelled_by(path: Path, frames: list[Atoms], key: str, values: list[object]) -> Path:
    labels = [{key: value} for value in values]
    return write_labelled(path, [atoms.copy() for atoms in frames], labels)


def zeros(kind: str, frames: list[Atoms]) -> list[object]:
    shape = {"dipole": (3,), "vector": (3,), "pseudoscalar": ()}.get(kind, (3, 3))
    return [np.zeros(shape) if shape else 0.0 for _ in frames]


def planted(head: Head, seed: int = 5) -> Head:
    """The head with random weights, of its own random functions."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=head.weight.shape)
    bias = rng.normal(size=head.bias.shape)
    kind = head.description.kind
    if kind == "dipole":
        bias = bias - bias.mean()
    elif kind in ("vector", "pseudoscalar"):
        bias = np.zeros_like(bias)
    return dataclasses.replace(head, weight=weight, bias=bias)


@pytest.mark.parametrize("kind", ["dipole", "vector", "tensor", "polarizability", "pseudoscalar"])
def test_planted_weights_are_found_to_1e_8(model, frames, tmp_path, kind) -> None:
    words = [f"head={kind}", "num_functions=3", "features=equivariant"]
    key = kind if kind == "dipole" else "planted"
    if kind != "dipole":
        words += ["key=planted", f"unit={UNITS[kind]}"]

    # the random functions depend on the structures alone, so these labels only draw them
    first = labelled_by(tmp_path / "first.traj", frames, key, zeros(kind, frames))
    truth = planted(fit_head(model, first, configured(*words), say=quiet))
    features = carried_features(model.potential, frames)
    answers = [truth.predict(own, atoms) for own, atoms in zip(features, frames, strict=True)]
    data = labelled_by(tmp_path / "mine.traj", frames, key, answers)

    head = fit_head(model, data, configured(*words), say=quiet)
    np.testing.assert_allclose(head.weight, truth.weight, atol=1e-8)
    np.testing.assert_allclose(head.bias, truth.bias, atol=1e-8)
    about = head.description
    assert about.errors["mae"] < 1e-8 < 1e-4 < about.guess["mae"]
    assert about.num_functions == 3 and about.features == "equivariant"


def test_units_of_a_polarizability(model, frames, tmp_path) -> None:
    volumes = [len(atoms) * np.eye(3) for atoms in frames]
    path = labelled_by(tmp_path / "mine.traj", frames, "alpha", volumes)
    head = fit_head(model, path, configured("head=polarizability", "key=alpha", "unit=A^3"), quiet)
    # 1 A^3 is 4 pi epsilon_0 A^3, and e^2 / (4 pi epsilon_0) is 14.3996 eV*A
    (features,) = carried_features(model.potential, [frames[0]])
    expected = len(frames[0]) * np.eye(3) / 14.3996
    np.testing.assert_allclose(head.predict(features, frames[0]), expected, atol=1e-5)
    assert head.description.unit == "e*A^2/V" and head.description.name == "alpha"


# --- left and right


def substituted(order: tuple[int, ...], *, rng: np.random.Generator) -> Atoms:
    """A carbon atom with four elements at the corners of a tetrahedron, rattled and turned."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    lengths = {1: 1.09, 7: 1.47, 8: 1.43, 6: 1.53}
    positions = [
        length * corner for length, corner in zip(map(lengths.get, order), corners, strict=True)
    ]
    atoms = Atoms([6, *order], np.vstack([np.zeros(3), positions]))
    atoms.positions += rng.normal(0, 0.05, (5, 3))
    atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
    atoms.info["level_of_theory"] = "drawn"
    return atoms


def hand(atoms: Atoms) -> float:
    """1 where the three heaviest substituents run clockwise, seen against the lightest; else -1."""
    arms = atoms.positions[1:] - atoms.positions[0]
    first, second, third, _ = arms[np.argsort(-atoms.numbers[1:])]
    return -float(np.sign(first @ np.cross(second, third)))


def test_hands_are_told_apart_and_invariants_cannot(model, tmp_path) -> None:
    rng = np.random.default_rng(0)
    orders = list(itertools.permutations((1, 6, 7, 8)))
    frames = [substituted(order, rng=rng) for order in orders * 5]
    hands = [hand(atoms) for atoms in frames]
    assert sorted(set(hands)) == [-1.0, 1.0]
    path = labelled_by(tmp_path / "mine.traj", frames, "hand", hands)
    words = ["head=pseudoscalar", "key=hand", "unit=sign", "split=structure", "num_functions=64"]
    head = fit_head(model, path, configured(*words), say=quiet)
    assert head.description.errors["sign"] == 1.0 and head.description.guess["sign"] == 0.5

    # mirror images have the same invariants, so a class is a coin
    images = []
    for atoms in frames:
        mirrored = atoms.copy()
        mirrored.positions[:, 0] *= -1
        images.append(mirrored)
    words = ["left" if own > 0 else "right" for own in [*hands, *(-one for one in hands)]]
    path = labelled_by(tmp_path / "both.traj", [*frames, *images], "hand", words)
    words = ["head=class", "key=hand", "split=structure", "held_out=0.5"]
    control = fit_head(model, path, configured(*words), say=quiet)
    assert 0.3 < control.description.errors["accuracy"] < 0.7


def test_figures_of_tensors_and_signs() -> None:
    labels = np.array([np.eye(3), 2 * np.eye(3), np.zeros((3, 3))])
    assert relative_figures(1.1 * labels, labels) == pytest.approx({"relative": 0.1})
    assert relative_figures(labels[2:], labels[2:]) == {}
    signs = sign_figures(np.array([0.1, -3.0, 0.0, 5.0]), np.array([1.0, 1.0, -1.0, 0.0]))
    assert signs == {"sign": 0.5}
    assert sign_figures(np.ones(1), np.zeros(1)) == {}


# --- misuse


def test_tensors_that_are_not_symmetric_are_named(model, tmp_path) -> None:
    frames = molecules(copies=1)
    tensors = [np.eye(3) for _ in frames]
    tensors[2] = np.eye(3) + np.eye(3, k=1)
    path = labelled_by(tmp_path / "mine.traj", frames, "alpha", tensors)
    config = configured("head=tensor", "key=alpha", "unit=B")
    with pytest.raises(EvenfieldError, match=r"record 2 has 'alpha' that is not symmetric, by 1"):
        fit_head(model, path, config, say=quiet)
    tensors[2] = np.ones(6)
    path = labelled_by(tmp_path / "mine.traj", frames, "alpha", tensors)
    with pytest.raises(EvenfieldError, match=r"record 2 has 'alpha' of shape \(6,\), not \(3, 3\)"):
        fit_head(model, path, config, say=quiet)


def test_extended_xyz_holds_tensors(model, frames, tmp_path) -> None:
    tensors = [len(atoms) * np.diag([1.0, 2.0, 3.0]) for atoms in frames]
    path = labelled_by(tmp_path / "mine.extxyz", frames, "alpha", tensors)
    config = configured("head=tensor", "key=alpha", "unit=B")
    assert fit_head(model, path, config, say=quiet).description.guess["mae"] > 0


def test_a_network_without_vectors_is_refused(tmp_path, frames) -> None:
    flat = model_zoo.load(molecular_model(tmp_path / "flat", l_max=0, l_hidden=0, correlation=1))
    path = labelled_by(tmp_path / "mine.traj", frames, "v", zeros("vector", frames))
    config = configured("head=vector", "key=v", "unit=D")
    with pytest.raises(EvenfieldError, match="needs vectors of each atom, and a gaunt network"):
        fit_head(flat, path, config, say=quiet)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head=vector"], "key: name the label that head=vector learns"),
        (["head=polarizability"], "unit: state that of 'polarizability', as in unit=e"),
        (["head=polarizability", "unit=A"], "'A' is not known: choose e"),
        (["head=vector", "key=a", "unit=D", "features=network"], "vector can have equivariant"),
        (["head=charges", "features=equivariant"], "charges can have network, readout"),
        (["head=dipole", "num_functions=8"], "num_functions: set features=equivariant"),
        (["head=pseudoscalar", "key=a", "unit=sign", "num_functions=0"], "is made of them"),
        (["head=tensor", "key=a", "unit=sign", "extensive=true"], "tensor has no such choice"),
    ],
)
def test_settings_that_cannot_be_used(words, message) -> None:
    with pytest.raises(SettingsError, match=message):
        configured(*words)
