"""A matrix of states is found from its eigenvalues, through an avoided crossing."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import load_settings
from evenfield.finetune.property_heads import states
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.couplings import pairs_of_states
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.labels import read_labelled
from evenfield.finetune.property_heads.save import save_head
from evenfield.finetune.property_heads.states import fit_states
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import molecular_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return model_zoo.load(molecular_model(tmp_path_factory.mktemp("states") / "model", channels=16))


def quiet(text: str) -> None:
    """Say nothing."""


def configured(*words: str) -> HeadConfig:
    fixed = ["head=states", "key=states", "unit=eV", "split=structure", "level_of_theory=drawn"]
    return load_settings(HeadConfig, None, [*fixed, *words])


def stretched(number: int = 60) -> list[Atoms]:
    """CO from 0.9 to 2.2 A with two curves that cross at 1.5 A, coupled by 0.05 eV."""
    frames = []
    for distance in np.linspace(0.9, 2.2, number):
        atoms = Atoms("CO", [[0, 0, 0], [0, 0, distance]])
        rising, falling = 2.0 * (distance - 1.5), -1.0 * (distance - 1.5)
        # energies of a molecule are large
        matrix = np.array([[rising, 0.05], [0.05, falling]]) - 3000.0 * np.eye(2)
        atoms.info["states"] = np.linalg.eigvalsh(matrix)
        frames.append(atoms)
    return frames


def test_an_avoided_crossing_is_learned(model, tmp_path) -> None:
    frames = stretched()
    ase.io.write(tmp_path / "states.extxyz", frames)
    head = fit_head(model, tmp_path / "states.extxyz", configured(), say=quiet)
    about = head.description
    assert (about.num_states, about.unit, about.elements) == (2, "eV", ["C", "O"])
    assert about.errors["mae"] < 0.003 < 0.2 < about.guess["mae"]


def test_energies_alone_find_the_matrix_that_made_them() -> None:
    # the curves cross, so that only a coupling explains why the energies do not
    places = np.linspace(-1, 1, 41)
    rows = np.stack([places, np.ones(41)], axis=1)
    matrices = np.array([[[p, 0.1], [0.1, -p]] for p in places])
    energies = np.linalg.eigvalsh(matrices)
    found = fit_states(rows, energies, [str(place) for place in range(41)], seed=0)
    entries = rows @ found.weights
    gap = np.hypot(entries[:, 0] - entries[:, 2], 2 * entries[:, 1])
    np.testing.assert_allclose(gap, energies[:, 1] - energies[:, 0], atol=1e-3)
    # at the crossing the vectors turn at the rate of the planted matrix, 1 / (2 * 0.1)
    angle = 0.5 * np.arctan2(2 * entries[:, 1], entries[:, 0] - entries[:, 2])
    turning = np.abs(np.gradient(np.unwrap(angle, period=np.pi), places))
    assert turning[20] == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([-1.0, -2.0], "record 3 has 'states' that do not rise"),
        ([1.0], "record 3 has 'states' of 1 energies"),
        ([1.0, 2.0, 3.0], "has structures with 2 and with 3 states"),
        ([1.0, np.nan], "record 3 has 'states' that is not finite"),
    ],
)
def test_wrong_energies_are_named(model, tmp_path: Path, values, message) -> None:
    frames = stretched(12)
    frames[3].info["states"] = np.array(values)
    ase.io.write(tmp_path / "states.traj", frames)
    with pytest.raises(EvenfieldError, match=message):
        fit_head(model, tmp_path / "states.traj", configured(), say=quiet)


def widely_avoided(number: int = 30) -> list[Atoms]:
    """CO with two curves that are coupled by 0.7 eV, and the derivative couplings of two thirds.

    The gap is 1.4 eV or more: two smooth curves without a coupling have the same energies.
    """
    frames = []
    rng = np.random.default_rng(0)
    for place, distance in enumerate(np.linspace(0.9, 2.2, number)):
        atoms = Atoms("CO", [[0, 0, 0], [0, 0, distance]])
        # the slopes of the entries: the coupling is the same at all distances
        slope = np.diag([2.0, -1.0])
        matrix = slope * (distance - 1.5) + 0.7 * (1 - np.eye(2)) - 3000.0 * np.eye(2)
        energies, vectors = np.linalg.eigh(matrix)
        # the sign of a state is drawn, as a program may choose it
        vectors = vectors * rng.choice([-1.0, 1.0], size=2)
        atoms.info["states"] = energies
        if place % 3:
            coupling = (vectors.T @ slope @ vectors)[0, 1] / (energies[1] - energies[0])
            atoms.arrays["nac"] = np.array([[0, 0, -coupling], [0, 0, coupling]])
        frames.append(atoms)
    return frames


def test_couplings_as_labels_say_what_energies_do_not(model, tmp_path, monkeypatch) -> None:
    # a planted matrix needs no long search
    monkeypatch.setattr(states, "ITERATIONS", 100)
    monkeypatch.setattr(states, "STARTS", 3)
    frames = widely_avoided()
    ase.io.write(tmp_path / "states.extxyz", frames)
    heads = {}
    for name, words in {"energies": [], "both": ["couplings=nac", "couplings_unit=1/A"]}.items():
        heads[name] = fit_head(model, tmp_path / "states.extxyz", configured(*words), say=quiet)
    about = heads["both"].description
    assert about.errors["mae"] < 0.005
    # of the size of the couplings, half of whose components are zero by symmetry
    assert about.errors["coupling_mae"] < 0.05 * about.errors["coupling_size"]
    assert "coupling_mae" not in heads["energies"].description.errors

    folder = save_head(heads["both"], model, "model", tmp_path / "both")
    learned = model_zoo.load(folder)
    alone = model_zoo.load(save_head(heads["energies"], model, "model", tmp_path / "alone"))
    asked = [atoms for atoms in frames if "nac" in atoms.arrays][::5]
    off = {"both": [], "alone": []}
    for atoms in asked:
        wanted = abs(atoms.arrays["nac"][1, 2])
        for name, own in (("both", learned), ("alone", alone)):
            found = own.states(atoms).derivative_couplings()[0, 1, 1, 2]
            off[name].append(abs(abs(found) - wanted))
    size = np.mean([abs(atoms.arrays["nac"][1, 2]) for atoms in asked])
    assert np.mean(off["both"]) < 0.05 * size
    # energies alone leave them open
    assert np.mean(off["alone"]) > 0.3 * size


def test_units_of_couplings_are_those_that_are_stated(model, tmp_path) -> None:
    frames = widely_avoided(20)
    for atoms in frames:
        if "nac" in atoms.arrays:
            atoms.arrays["bohr"] = atoms.arrays["nac"] * units.Bohr
    ase.io.write(tmp_path / "states.extxyz", frames)
    known = set(model.record.symbols)
    found = []
    for words in (
        ["couplings=nac", "couplings_unit=1/A"],
        ["couplings=bohr", "couplings_unit=1/Bohr"],
    ):
        found.append(read_labelled(tmp_path / "states.extxyz", configured(*words), known).couplings)
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-6)
    # h = (E_1 - E_0) d
    gap = np.diff(frames[1].info["states"])[0]
    np.testing.assert_allclose(found[0][1][0], gap * frames[1].arrays["nac"], rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 2)), r"record 3 has 'nac' of shape \(2, 2\), not numbers of shape \(2, 3\)"),
        (np.full((2, 3), np.nan), "record 3 has 'nac' that is not finite"),
    ],
)
def test_wrong_couplings_are_named(model, tmp_path: Path, array, message) -> None:
    frames = stretched(12)
    for index in (2, 3):
        frames[index].arrays["nac"] = np.ones((2, 3)) if index == 2 else array
    for name, own in (("states.extxyz", frames), ("none.extxyz", stretched(12))):
        ase.io.write(tmp_path / name, own)
    words = ["couplings=nac", "couplings_unit=1/A"]
    with pytest.raises(EvenfieldError, match=message):
        fit_head(model, tmp_path / "states.extxyz", configured(*words), say=quiet)
    with pytest.raises(EvenfieldError, match="has no structure with 'nac'"):
        fit_head(model, tmp_path / "none.extxyz", configured(*words), say=quiet)


def test_settings_of_couplings_belong_together() -> None:
    with pytest.raises(EvenfieldError, match="couplings_unit: state it with couplings"):
        configured("couplings=nac")
    words = ["head=scalar", "key=gap", "unit=eV", "couplings=nac", "couplings_unit=1/A"]
    with pytest.raises(EvenfieldError, match="couplings: only head=states has them"):
        load_settings(HeadConfig, None, words)


def test_pairs_of_states_keep_their_places() -> None:
    first, second = pairs_of_states(4)
    assert list(zip(first, second, strict=True)) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
