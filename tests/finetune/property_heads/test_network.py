"""A network of its own for a head: it learns what linear weights cannot, and energies stay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from safetensors.numpy import load, save

from evenfield import model_zoo
from evenfield.core.settings import SettingsError, load_settings
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.equivariant import shares_of
from evenfield.finetune.property_heads.fit import features_of, fit_head, fit_weights
from evenfield.finetune.property_heads.labels import read_labelled
from evenfield.finetune.property_heads.network import train_network
from evenfield.finetune.property_heads.save import save_head
from evenfield.model_zoo.heads.features import carried_features
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.heads.record import HEADS, heads_of
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.weights import metadata

from labelled_molecules import (
    ROTATING,
    molecular_model,
    molecules,
    planted_head,
    rotating_head,
    write_labelled,
)


KINDS = ("charges", "dipole", "scalar", "atom_scalar", "vector", "polarizability", "pseudoscalar")
UNITS = {"charges": "e", "dipole": "e*A", "polarizability": "e*A^2/V"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = molecular_model(tmp_path_factory.mktemp("network") / "model", **ROTATING)
    return model_zoo.load(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Another network, whose features those of the model do not span."""
    path = molecular_model(tmp_path_factory.mktemp("network") / "teacher", seed=7, **ROTATING)
    return model_zoo.load(path)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return molecules(copies=12)


def configured(*words: str) -> HeadConfig:
    return load_settings(HeadConfig, None, list(words))


def quiet(text: str) -> None:
    """Say nothing."""


def labelled_by(path: Path, frames: list[Atoms], key: str, answers: list[object]) -> Path:
    labels = [{key: answer} for answer in answers]
    return write_labelled(path, [atoms.copy() for atoms in frames], labels)


def answers_of(teacher: LoadedModel, kind: str, frames: list[Atoms]) -> list[object]:
    """Labels by a planted head of the teacher."""
    if kind in ("vector", "polarizability", "pseudoscalar"):
        head = rotating_head(kind, teacher.potential)
    else:
        num_features = teacher.potential.backbone.num_features
        head = planted_head(kind, num_features, name="planted")
    features = carried_features(teacher.potential, frames, head.description.features)
    return [head.predict(own, atoms) for own, atoms in zip(features, frames, strict=True)]


@pytest.fixture(scope="module")
def taught(model, teacher, frames, tmp_path_factory) -> tuple[Head, Head, Path]:
    """Dipoles of the teacher, learned by a frozen and by a trained network; the trained model."""
    folder = tmp_path_factory.mktemp("taught")
    path = labelled_by(
        folder / "mine.traj", frames, "dipole", answers_of(teacher, "dipole", frames)
    )
    words = ["head=dipole", "split=structure"]
    frozen = fit_head(model, path, configured(*words), say=quiet)
    more = ["network=trained", "training.max_steps=150", "training.learning_rate=0.005"]
    trained = fit_head(model, path, configured(*words, *more), say=quiet)
    save_head(trained, model, "model", folder / "out")
    return frozen, trained, folder / "out"


def test_a_network_of_its_own_learns_what_linear_weights_cannot(taught) -> None:
    frozen, trained, _ = taught
    assert frozen.own is None and trained.own is not None
    assert trained.description.trained_steps > 0 == frozen.description.trained_steps
    assert trained.description.errors["mae"] < 0.6 * frozen.description.errors["mae"]


def test_energies_stay_bit_for_bit(taught, model) -> None:
    _, _, folder = taught
    loaded = model_zoo.load(folder)
    before = model.potential.state_dict()
    after = loaded.potential.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    own = loaded.heads["dipole"].own
    assert own is not None
    weights = own.backbone.state_dict()
    assert any(not torch.equal(before[f"backbone.{name}"], weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_folder_has_the_network_and_answers_turn(taught, frames, dtype) -> None:
    _, trained, folder = taught
    loaded = model_zoo.load(folder)
    atoms = frames[50].copy()
    known = loaded.predict(atoms, "dipole")
    (features,) = carried_features(trained.own, [atoms], "network")
    np.testing.assert_allclose(known, trained.predict(features, atoms), atol=1e-5)

    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3))
    back = loaded.predict(turned, "dipole")
    arrow = Atoms("H2", [[0, 0, 0], known])
    arrow.rotate(40, (1, 2, 3))
    np.testing.assert_allclose(back, arrow.positions[1], atol=1e-5)

    atoms.calc = loaded.calculator(heads=True, dtype=dtype)
    np.testing.assert_allclose(atoms.get_dipole_moment(), known, atol=1e-4)


def test_derivatives_run_through_its_own_network(taught, frames) -> None:
    _, _, folder = taught
    loaded = model_zoo.load(folder)
    atoms = frames[100].copy()
    found = loaded.polar_tensors(atoms)[1, :, 2]
    step = 1e-4
    dipoles = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        dipoles.append(loaded.predict(moved, "dipole"))
    np.testing.assert_allclose(found, (dipoles[0] - dipoles[1]) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_starts_from_the_closed_form(model, teacher, frames, tmp_path, kind) -> None:
    """Its loss before the first step is that of the answers of the head in closed form."""
    key = kind if kind in ("charges", "dipole") else "planted"
    path = labelled_by(tmp_path / "mine.traj", frames, key, answers_of(teacher, kind, frames))
    words = [f"head={kind}", "split=structure", "network=trained", "training.max_steps=1"]
    if key == "planted":
        words += ["key=planted", f"unit={UNITS.get(kind, 'D')}"]
    config = configured(*words)
    labelled = read_labelled(path, config, model.record.symbols)
    elements = np.array([1, 6, 7, 8])
    train = np.arange(100)
    features = features_of(model.potential, labelled, config.head_features)
    start = fit_weights(labelled, features, train, elements, config, model.potential)
    trained = train_network(
        model.potential, labelled, start, train, np.array([120]), elements, config
    )
    frozen = fit_head(model, path, configured(*words[:2], *words[4:]), say=quiet)
    head = dataclasses.replace(
        frozen, weight=start.weight, bias=start.bias, expansion=start.expansion
    )
    answer = np.asarray(head.predict(features[120], labelled.frames[120]))
    assert trained.losses[0][1] == pytest.approx(
        loss_by_hand(answer, labelled, train, config), rel=1e-4
    )


def loss_by_hand(answer: np.ndarray, labelled, train: np.ndarray, config: HeadConfig) -> float:
    """Mean Huber loss of structure 120 in units of the spread of those at `train`."""
    flat = np.concatenate([np.ravel(labelled.labels[s]) for s in train])
    is_scalar = config.head in ("scalar", "atom_scalar", "charges", "pseudoscalar")
    spread = flat.std() if is_scalar else np.sqrt((flat**2).mean())
    share = shares_of(labelled, np.array([*train, 120]), config)[-1]
    error = np.abs(share * (answer - labelled.labels[120]) / spread)
    width = 0.05
    huber = np.where(error < width, 0.5 * error**2, width * (error - 0.5 * width))
    return float(huber.mean() / width)


def test_no_network_where_none_is_better(model, frames, tmp_path) -> None:
    """Labels that linear weights give exactly leave nothing to train."""
    head = planted_head("scalar", model.potential.backbone.num_features, name="planted")
    features = carried_features(model.potential, frames, "network")
    answers = [head.predict(own, atoms) for own, atoms in zip(features, frames, strict=True)]
    path = labelled_by(tmp_path / "mine.traj", frames, "planted", answers)
    said: list[str] = []
    words = ["head=scalar", "key=planted", "unit=D", "split=structure"]
    more = ["network=trained", "training.max_steps=20"]
    fitted = fit_head(model, path, configured(*words, *more), say=said.append)
    assert fitted.own is None and fitted.description.trained_steps == 0
    assert any("no step was better than the frozen network" in line for line in said)


def test_atoms_without_a_label_do_not_count(model, teacher, frames, tmp_path) -> None:
    """NaN in a label must not become NaN in a loss, which would skip every step."""
    answers = answers_of(teacher, "atom_scalar", frames)
    for place, own in enumerate(answers):
        own[: 1 if place % 5 else len(own)] = np.nan
    labelled = [atoms.copy() for atoms in frames]
    for atoms, own in zip(labelled, answers, strict=True):
        atoms.arrays["moment"] = own
    path = tmp_path / "mine.extxyz"
    ase.io.write(path, labelled)
    words = ["head=atom_scalar", "key=moment", "unit=muB", "split=structure", "network=trained"]
    fitted = fit_head(
        model,
        path,
        configured(*words, "skip_unlabelled=true", "training.max_steps=40"),
        say=quiet,
    )
    assert fitted.description.trained_steps > 0


def test_a_damaged_network_is_none(taught, tmp_path) -> None:
    _, _, folder = taught
    loaded = model_zoo.load(folder)
    content = loaded.attachments[HEADS]
    arrays = load(content)
    name = next(name for name in arrays if "/network/" in name)
    for damage in ("absent", "shape", "nan"):
        changed = dict(arrays)
        if damage == "absent":
            del changed[name]
        elif damage == "shape":
            changed[name] = np.zeros((1, 1), dtype=np.float32)
        else:
            changed[name] = np.full_like(arrays[name], np.nan)
        file = save(changed, metadata=metadata_as_text(content))
        assert heads_of(loaded.potential, {HEADS: file}) == {}
    whole = save(arrays, metadata=metadata_as_text(content))
    assert set(heads_of(loaded.potential, {HEADS: whole})) == {"dipole"}


def metadata_as_text(content: bytes) -> dict[str, str]:
    """The metadata of a file as safetensors stores them."""
    size = int.from_bytes(content[:8], "little")
    assert metadata(content)
    return json.loads(content[8 : 8 + size])["__metadata__"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head=class", "key=a", "network=trained"], "head=class has no network of its own"),
        (["head=dipole", "features=readout", "network=trained"], "trains no readout"),
        (["head=dipole", "training.max_steps=5"], "training: set network=trained"),
        (["head=dipole", "spread=true", "network=trained"], "spread: network=trained has seen all"),
    ],
)
def test_settings_that_cannot_be_used(words, message) -> None:
    with pytest.raises(SettingsError, match=message):
        configured(*words)
