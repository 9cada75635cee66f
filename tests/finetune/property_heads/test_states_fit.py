"""A matrix of states is found from its eigenvalues, through an avoided crossing."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import load_settings
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.fit import fit_head
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
