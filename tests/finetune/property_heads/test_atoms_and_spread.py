"""Heads of each atom, labels that only some have, direct forces, and how large errors are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import SettingsError, load_settings
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.figures import spread_figures
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.labels import read_labelled
from evenfield.finetune.property_heads.ridge import ridge
from evenfield.finetune.property_heads.save import save_head
from evenfield.finetune.property_heads.split import held_out
from evenfield.finetune.property_heads.spread import fit_spread, left_out_errors
from evenfield.model_zoo.heads.features import carried_features
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import ROTATING, molecular_model, molecules


OF_ATOMS = {"atom_scalar": (), "atom_vector": (3,), "atom_tensor": (3, 3), "forces": (3,)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return model_zoo.load(molecular_model(tmp_path_factory.mktemp("atoms") / "model", **ROTATING))


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return molecules(copies=8)


def configured(*words: str) -> HeadConfig:
    return load_settings(HeadConfig, None, list(words))


def quiet(text: str) -> None:
    """Say nothing."""


def words_of(kind: str) -> list[str]:
    words = [f"head={kind}", "key=planted", f"unit={'eV/A' if kind == 'forces' else 'B'}"]
    return words if kind == "atom_scalar" else [*words, "num_functions=3"]


def of_atoms(path: Path, frames: list[Atoms], values: list[np.ndarray]) -> Path:
    """Write extended XYZ with labels of atoms."""
    labelled = []
    for atoms, own in zip(frames, values, strict=True):
        copy = atoms.copy()
        copy.arrays["planted"] = own.reshape(len(own), -1) if own.ndim > 1 else own
        labelled.append(copy)
    ase.io.write(path, labelled)
    return path


def answers(head: Head, model: LoadedModel, frames: list[Atoms]) -> list[np.ndarray]:
    features = carried_features(model.potential, frames, head.description.features)
    return [head.predict(own, atoms) for own, atoms in zip(features, frames, strict=True)]


def planted(head: Head) -> Head:
    """The head with random weights, of its own random functions."""
    rng = np.random.default_rng(5)
    has_bias = head.description.kind in ("atom_scalar", "atom_tensor")
    weight = rng.normal(size=head.weight.shape)
    return dataclasses.replace(
        head, weight=weight, bias=rng.normal(size=head.bias.shape) * has_bias
    )


@pytest.mark.parametrize("kind", OF_ATOMS)
def test_planted_weights_are_found(model, frames, tmp_path, kind) -> None:
    nothing = [np.zeros((len(atoms), *OF_ATOMS[kind])) for atoms in frames]
    path = of_atoms(tmp_path / "first.extxyz", frames, nothing)
    words = [*words_of(kind), *(["torque=0"] if kind == "forces" else [])]
    truth = planted(fit_head(model, path, configured(*words), say=quiet))
    path = of_atoms(tmp_path / "mine.extxyz", frames, answers(truth, model, frames))
    head = fit_head(model, path, configured(*words), say=quiet)
    # the file has eight digits
    for found, wanted in zip(
        answers(head, model, frames), answers(truth, model, frames), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert head.description.errors["mae"] < 1e-5 < 1e-2 < head.description.guess["mae"]
    assert head.description.silent_elements == []


def test_atoms_and_structures_without_a_label(model, frames, tmp_path) -> None:
    number = {"H": 1.0, "C": 2.0, "N": np.nan, "O": 4.0}
    values = [np.array([number[symbol] for symbol in atoms.symbols]) for atoms in frames]
    # one oxygen atom has no label, though others have
    first = next(place for place, atoms in enumerate(frames) if "O" in atoms.symbols)
    values[first][list(frames[first].symbols).index("O")] = np.nan
    path = of_atoms(tmp_path / "mine.extxyz", frames, values)
    config = configured("head=atom_scalar", "key=planted", "unit=ppm", "skip_unlabelled=true")
    said: list[str] = []
    head = fit_head(model, path, config, say=said.append)

    # nitrogen alone, N2, has nothing to learn from
    assert f"left out: {sum(set(a.symbols) == {'N'} for a in frames)} structures" in said[1]
    assert head.description.silent_elements == ["N"]
    assert head.description.errors["mae"] < 1e-5
    ammonia = frames[[atoms.get_chemical_formula() for atoms in frames].index("H3N")]
    (answer,) = answers(head, model, [ammonia])
    is_silent = ammonia.symbols == "N"
    assert np.isnan(answer[is_silent]).all()
    np.testing.assert_allclose(answer[~is_silent], 1.0, atol=1e-5)

    # the same after it was stored
    out = save_head(head, model, "model", tmp_path / "out")
    np.testing.assert_array_equal(model_zoo.load(out).predict(ammonia, "planted"), answer)


def test_a_structure_without_a_label_is_named(model, frames, tmp_path) -> None:
    mine = [atoms.copy() for atoms in frames]
    for atoms in mine[:5] + mine[6:]:
        atoms.info["gap"] = 1.0
    ase.io.write(tmp_path / "mine.extxyz", mine)
    config = configured("head=scalar", "key=gap", "unit=eV")
    with pytest.raises(EvenfieldError, match=r"record 5 has no 'gap'.*skip_unlabelled=true"):
        fit_head(model, tmp_path / "mine.extxyz", config, say=quiet)
    config = configured("head=scalar", "key=gab", "unit=eV", "skip_unlabelled=true")
    with pytest.raises(EvenfieldError, match="has no structure with 'gab'"):
        fit_head(model, tmp_path / "mine.extxyz", config, say=quiet)


def test_infinite_and_skew_labels_of_atoms_are_named(model, frames, tmp_path) -> None:
    values = [np.ones(len(atoms)) for atoms in frames]
    values[3][1] = np.inf
    path = of_atoms(tmp_path / "mine.extxyz", frames, values)
    with pytest.raises(EvenfieldError, match="record 3 has 'planted' that is infinite"):
        fit_head(model, path, configured("head=atom_scalar", "key=planted", "unit=B"), say=quiet)
    tensors = [np.tile(np.eye(3), (len(atoms), 1, 1)) for atoms in frames]
    tensors[2][1, 0, 1] = 0.5
    path = of_atoms(tmp_path / "mine.extxyz", frames, tensors)
    with pytest.raises(EvenfieldError, match="record 2 has 'planted' that is not symmetric"):
        fit_head(model, path, configured("head=atom_tensor", "key=planted", "unit=B"), say=quiet)


def test_classes_that_nothing_tests_are_named(model, frames, tmp_path) -> None:
    mine = [atoms.copy() for atoms in frames]
    for place, atoms in enumerate(mine):
        atoms.info["kind"] = "rare" if place == 0 else ("dull", "shiny")[place % 2]
    ase.io.write(tmp_path / "mine.extxyz", mine)
    said: list[str] = []
    config = configured("head=class", "key=kind", "split=structure", "seed=1")
    fit_head(model, tmp_path / "mine.extxyz", config, say=said.append)
    assert said[1] == "no structure of rare is held out, so the errors are without it"


def test_a_class_keeps_structures_to_learn_from(model, frames, tmp_path) -> None:
    # whichever structure is the only one of its class, it is learned from
    for only in range(0, 40, 5):
        mine = [atoms.copy() for atoms in frames]
        for place, atoms in enumerate(mine):
            atoms.info["kind"] = "rare" if place == only else ("dull", "shiny")[place % 2]
        path = tmp_path / "mine.extxyz"
        ase.io.write(path, mine)
        config = configured("head=class", "key=kind", "split=structure")
        labelled = read_labelled(path, config, ["H", "C", "N", "O"])
        mask = held_out(labelled.frames, config, path, labelled.labels)
        assert not mask[only]
        assert 10 < mask.sum() < 30


# --- forces


def test_forces_come_from_the_calculator_and_have_no_torque(model, tmp_path) -> None:
    frames = molecules(copies=8)
    rng = np.random.default_rng(0)
    for atoms in frames:
        # noise has a torque, which no potential gives
        atoms.calc = SinglePointCalculator(atoms, forces=rng.normal(size=(len(atoms), 3)))
    ase.io.write(tmp_path / "mine.traj", frames)

    torque = {}
    for weight in (0, 100):
        words = ["head=forces", f"torque={weight}", "num_functions=32", "split=structure"]
        head = fit_head(model, tmp_path / "mine.traj", configured(*words), say=quiet)
        assert head.description.name == "direct_forces" and head.description.unit == "eV/A"
        found = answers(head, model, frames)
        sizes = []
        for atoms, forces in zip(frames, found, strict=True):
            np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-10)
            arms = atoms.positions - atoms.positions.mean(axis=0)
            sizes.append(np.abs(np.cross(arms, forces).sum(axis=0)).max())
        torque[weight] = np.mean(sizes)
    assert torque[100] < 0.2 * torque[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head=atom_scalar"], "key: name the label that head=atom_scalar learns"),
        (["head=forces", "key=REF_forces"], "unit: state that of 'REF_forces'"),
        (["head=forces", "name=forces"], "'forces' has another meaning in results"),
        (["head=atom_scalar", "key=a", "unit=B", "torque=1"], "torque: only head=forces"),
        (["head=charges", "spread=true"], "spread: charges cannot have one"),
        (["head=forces", "spread=true"], "spread: forces cannot have one"),
        (["head=atom_vector", "key=a", "unit=B", "features=readout"], "can have equivariant"),
    ],
)
def test_settings_that_cannot_be_used(words, message) -> None:
    with pytest.raises(SettingsError, match=message):
        configured(*words)


# --- how large errors are


def noisy(frames: list[Atoms], rng: np.random.Generator, size: dict[str, float]) -> list[float]:
    """Zero, with a noise that depends on whether a structure has oxygen."""
    return [size["O" if "O" in atoms.symbols else "none"] * rng.normal() for atoms in frames]


@pytest.mark.parametrize("extensive", [False, True])
def test_a_spread_finds_where_errors_are_large(model, tmp_path, extensive) -> None:
    frames = molecules(copies=25)
    values = noisy(frames, np.random.default_rng(0), {"O": 1.0, "none": 0.1})
    for atoms, value in zip(frames, values, strict=True):
        atoms.info["noisy"] = value * (len(atoms) ** 0.5 if extensive else 1.0)
    ase.io.write(tmp_path / "mine.extxyz", frames)
    words = ["head=scalar", "key=noisy", "unit=eV", "spread=true", "split=structure"]
    words += [f"extensive={str(extensive).lower()}"]
    head = fit_head(model, tmp_path / "mine.extxyz", configured(*words), say=quiet)
    assert head.description.errors["gain_by_spread"] > 0.2
    assert 0.5 < head.description.errors["within_spread"] < 0.85
    assert head.description.errors["spread_rank"] > 0.4

    saved = model_zoo.load(save_head(head, model, "model", tmp_path / "out"))
    by_formula = {atoms.get_chemical_formula(): atoms for atoms in frames}
    spreads = {}
    for formula in ("H2O", "CH4"):
        atoms = by_formula[formula]
        atoms.calc = saved.calculator(heads=["noisy"], warn_outside=False)
        atoms.get_potential_energy()
        spreads[formula] = atoms.calc.results["noisy_std"]
        assert spreads[formula] == pytest.approx(saved.predict_spread(atoms, "noisy"))
        assert spreads[formula] / (len(atoms) ** 0.5 if extensive else 1.0) < 3.0
    assert spreads["H2O"] > 2 * spreads["CH4"] > 0


def test_a_spread_of_atoms(model, frames, tmp_path) -> None:
    rng = np.random.default_rng(0)
    values = []
    for atoms in frames:
        size = np.where(atoms.symbols == "H", 0.1, 1.0)
        values.append(size * rng.normal(size=len(atoms)))
    path = of_atoms(tmp_path / "mine.extxyz", frames, values)
    words = ["head=atom_scalar", "key=planted", "unit=B", "spread=true", "split=structure"]
    head = fit_head(model, path, configured(*words), say=quiet)
    (features,) = carried_features(model.potential, [frames[0]], "network")
    spread = head.predict_spread(features, frames[0])
    is_hydrogen = frames[0].symbols == "H"
    assert spread[is_hydrogen].max() < 0.3 < 0.5 < spread[~is_hydrogen].min()


TURNING = {
    "dipole": ["head=dipole"],
    "vector": ["head=vector", "key=noisy", "unit=A"],
    "polarizability": ["head=polarizability", "key=noisy", "unit=e*A^2/V"],
    "pseudoscalar": ["head=pseudoscalar", "key=noisy", "unit=A^3", "num_functions=8"],
    "hand": ["head=pseudoscalar", "key=noisy", "unit=A^3", "num_functions=8", "extensive=true"],
    "atom_tensor": ["head=atom_tensor", "key=noisy", "unit=A^2"],
}


# noise of structures with oxygen, of oxygen atoms, and of all others
WITH_OXYGEN = 1.0
OTHERS = 0.1


def give_noise(atoms: Atoms, kind: str, rng: np.random.Generator) -> None:
    """Label a molecule, or its atoms, with noise that has no direction."""
    if kind == "atom_tensor":
        noise = symmetric_noise(rng, len(atoms)) * noise_of_atoms(atoms)[:, None, None]
        atoms.arrays["noisy"] = noise.reshape(len(atoms), 9)
        return

    size = WITH_OXYGEN if "O" in atoms.symbols else OTHERS
    if kind != "pseudoscalar":
        # a sum has more noise with more atoms, a mean has not
        size *= len(atoms) ** 0.5
    if kind == "dipole":
        atoms.calc = SinglePointCalculator(atoms, dipole=size * rng.normal(size=3))
    elif kind == "vector":
        atoms.info["noisy"] = size * rng.normal(size=3)
    elif kind == "polarizability":
        atoms.info["noisy"] = size * symmetric_noise(rng, 1)[0]
    else:
        atoms.info["noisy"] = size * float(rng.normal())


def symmetric_noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Symmetric matrices (count, 3, 3), of which the diagonal entries have unit variance."""
    noise = rng.normal(size=(count, 3, 3))
    return (noise + noise.swapaxes(1, 2)) / 2


def noise_of_atoms(atoms: Atoms) -> np.ndarray:
    return np.where(atoms.symbols == "O", WITH_OXYGEN, OTHERS)


@pytest.mark.parametrize("kind", TURNING)
def test_a_spread_of_answers_that_turn(model, tmp_path, kind) -> None:
    """Noise of known size without direction: the spread is that size, and the same when turned."""
    rng = np.random.default_rng(0)
    frames = molecules(copies=25)
    for atoms in frames:
        give_noise(atoms, kind, rng)
    ase.io.write(tmp_path / "mine.extxyz", frames)
    words = [*TURNING[kind], "name=dipole" if kind == "dipole" else "name=noise"]
    config = configured(*words, "spread=true", "split=structure")
    head = fit_head(model, tmp_path / "mine.extxyz", config, say=quiet)
    figures = head.description.errors
    assert figures["gain_by_spread"] > 0.2
    assert 0.55 < figures["within_spread"] < 0.85
    assert figures["spread_rank"] > 0.3

    # stored, loaded, and beside the answer in the results
    saved = model_zoo.load(save_head(head, model, "model", tmp_path / "out"))
    # of a symmetric matrix of unit noise, the root mean square of its entries
    unit = (2 / 3) ** 0.5 if kind in ("polarizability", "atom_tensor") else 1.0
    for formula, own_noise in (("H2O", WITH_OXYGEN), ("CH4", OTHERS)):
        (atoms, *_) = (own for own in frames if own.get_chemical_formula() == formula)
        atoms.calc = saved.calculator(heads=True, warn_outside=False)
        atoms.get_potential_energy()
        column = {"dipole": "dipole", "polarizability": "polarizability"}.get(kind, "noise")
        spread = atoms.calc.results[f"{column}_std"]
        np.testing.assert_allclose(spread, saved.predict_spread(atoms, words[-1][5:]))
        assert "charges_std" not in atoms.calc.results
        is_sum = kind not in ("pseudoscalar", "atom_tensor")
        noise = noise_of_atoms(atoms) if kind == "atom_tensor" else own_noise
        truth = noise * unit * (len(atoms) ** 0.5 if is_sum else 1.0)
        assert np.all((spread > truth / 2) & (spread < 2.5 * truth)), (formula, spread, truth)

        turned = atoms.copy()
        turned.rotate(40, (1, 2, 3))
        again = saved.predict_spread(turned, words[-1][5:])
        np.testing.assert_allclose(again, spread, rtol=1e-4)


def test_a_head_without_a_spread_says_so(model, frames, tmp_path) -> None:
    path = of_atoms(tmp_path / "mine.extxyz", frames, [np.ones(len(atoms)) for atoms in frames])
    config = configured("head=atom_scalar", "key=planted", "unit=B")
    head = fit_head(model, path, config, say=quiet)
    (features,) = carried_features(model.potential, [frames[0]], "network")
    with pytest.raises(EvenfieldError, match=r"does not say how large.*spread=true"):
        head.predict_spread(features, frames[0])


def test_variances_that_rows_explain_are_found() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 2))
    log_variance = 1.5 * rows[:, 0] - 1.0
    targets = rows @ [1.0, 2.0] + np.exp(0.5 * log_variance) * rng.normal(size=4000)
    groups = [str(index) for index in range(4000)]
    errors = left_out_errors(rows, targets, np.ones(4000), groups, seed=0)
    fit = fit_spread(errors**2, rows, groups, seed=0)
    np.testing.assert_allclose(fit.weights, [1.5, 0.0], atol=0.1)
    assert fit.constant == pytest.approx(-1.0, abs=0.1)


def test_variances_that_hold_for_no_other_group_are_nearly_one_for_all() -> None:
    # the size of the errors is that of the group, and the features name the group
    rng = np.random.default_rng(5)
    group_index = np.repeat(np.arange(20), 30)
    size = np.exp(rng.normal(size=20))[group_index]
    features = rng.normal(size=(20, 15))[group_index]
    squares = (size * rng.normal(size=600)) ** 2
    fit = fit_spread(squares, features, [str(index) for index in group_index], seed=0)
    plain = ridge(features, np.log(squares), np.ones(600))
    assert (features @ fit.weights).std() < 0.2 * (features @ plain.weights).std()
    assert fit.constant == pytest.approx(np.log(squares.mean()), abs=0.3)


def test_errors_are_those_of_fits_without_the_group() -> None:
    # each group has a constant of its own, which only its own rows could tell
    groups = [str(index % 10) for index in range(100)]
    targets = np.array([float(int(group) % 2) for group in groups])
    rows = np.array([[float(int(group) == column) for column in range(10)] for group in groups])
    errors = left_out_errors(rows, targets, np.ones(100), groups, seed=0)
    assert np.abs(errors).min() > 0.3


def test_figures_of_spreads() -> None:
    figures = spread_figures(np.array([0.1, -2.0, np.nan]), np.array([0.2, 1.0, 5.0]))
    assert figures["within_spread"] == 0.5
    assert figures["spread_rank"] == pytest.approx(1.0)
    one = float(np.sqrt(4.01 / 2))
    expected = np.mean(np.log(one / np.array([0.2, 1.0])) + 0.5 * (1 - np.array([0.25, 4.0])))
    assert figures["gain_by_spread"] == pytest.approx(expected)
    assert "spread_rank" not in spread_figures(np.ones(3), np.ones(3))
