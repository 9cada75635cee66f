"""Heads that are fitted: planted weights are found, and wrong input is refused with its place."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield import cli, model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import SettingsError, load_settings
from evenfield.finetune.features import structure_features
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.logistic import fit
from evenfield.finetune.property_heads.ridge import ridge
from evenfield.finetune.property_heads.save import save_head
from evenfield.finetune.property_heads.split import held_out
from evenfield.model_zoo.heads.features import atom_features, carried_features
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import molecular_model, molecules, planted_head, write_labelled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return molecular_model(tmp_path_factory.mktemp("fit") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    """Molecules whose labels are those of heads with planted weights."""
    return molecules(copies=12)


def configured(*words: str) -> HeadConfig:
    return load_settings(HeadConfig, None, list(words))


def quiet(text: str) -> None:
    """Say nothing."""


def planted_file(path: Path, model: LoadedModel, frames: list[Atoms], kind: str) -> Path:
    """A file with the labels of the planted head of a kind.

    Of classes, half of the structures are shiny: those with the larger probability.
    """
    facts = {"classes": ["dull", "shiny"], "unit": "probability"} if kind == "class" else {}
    if kind in ("scalar", "class"):
        facts["name"] = "planted"
    head = planted_head(kind, model.potential.backbone.num_features, **facts)
    features = carried_features(model.potential, frames, "network")
    answers = [head.predict(own, atoms) for own, atoms in zip(features, frames, strict=True)]
    if kind == "class":
        shiny = np.array([answer["shiny"] for answer in answers])
        answers = ["shiny" if one > np.median(shiny) else "dull" for one in shiny]
    labels = [{head.description.name: answer} for answer in answers]
    return write_labelled(path, [atoms.copy() for atoms in frames], labels)


# --- the fits


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("charges", ["head=charges"]),
        ("dipole", ["head=dipole"]),
        ("scalar", ["head=scalar", "key=planted", "unit=eV"]),
    ],
)
def test_planted_weights_are_found_to_1e_8(model, frames, tmp_path, kind, words) -> None:
    # written as a trajectory, which rounds nothing
    path = planted_file(tmp_path / "mine.traj", model, frames, kind)
    head = fit_head(model, path, configured(*words), say=quiet)
    planted = planted_head(kind, model.potential.backbone.num_features)
    np.testing.assert_allclose(head.weight, planted.weight, atol=1e-8)
    # all compositions have the same elements, so nothing is left open but a common bias of charges
    np.testing.assert_allclose(head.bias, planted.bias, atol=1e-8)
    assert head.description.errors["mae"] < 1e-8
    assert head.description.guess["mae"] > 0.01


@pytest.mark.parametrize("kind", ["charges", "dipole", "scalar", "class"])
def test_a_loaded_head_says_what_the_fitted_one_said(model, frames, tmp_path, kind) -> None:
    words = {"scalar": ["key=planted", "unit=eV"], "class": ["key=planted"]}.get(kind, [])
    path = planted_file(tmp_path / "mine.traj", model, frames, kind)
    head = fit_head(model, path, configured(f"head={kind}", *words), say=quiet)
    loaded = model_zoo.load(save_head(head, model, "model", tmp_path / "out"))
    (features,) = carried_features(model.potential, [frames[0]], "network")
    said = head.predict(features, frames[0])
    again = loaded.predict(frames[0], head.description.name)
    if kind == "class":
        assert again == pytest.approx(said)
        assert 1e-6 < said["shiny"] < 1 - 1e-6
    else:
        np.testing.assert_allclose(again, said, rtol=1e-12)


def test_charges_that_were_never_labelled_follow_from_dipoles(model, frames, tmp_path) -> None:
    path = planted_file(tmp_path / "mine.traj", model, frames, "dipole")
    head = fit_head(model, path, configured("head=dipole"), say=quiet)
    planted = planted_head("dipole", model.potential.backbone.num_features)
    (features,) = atom_features(model.potential, [frames[0]])
    np.testing.assert_allclose(
        head.charges(features, frames[0]), planted.charges(features, frames[0]), atol=1e-8
    )


def test_point_charges_are_found_from_their_dipoles(model, tmp_path) -> None:
    known = {"H": 0.2, "O": -0.4, "C": 0.0, "N": -0.6}
    frames = [atoms for atoms in molecules(copies=6) if len(atoms) == 3 or "N" in atoms.symbols]
    frames = [atoms for atoms in frames if atoms.get_chemical_formula() in ("H2O", "H3N")]
    labels = []
    for atoms in frames:
        charges = np.array([known[symbol] for symbol in atoms.symbols])
        labels.append({"dipole": charges @ atoms.positions})
    path = write_labelled(tmp_path / "mine.traj", frames, labels)
    head = fit_head(model, path, configured("head=dipole", "split=structure"), say=quiet)
    (features,) = atom_features(model.potential, [frames[0]])
    expected = [known[symbol] for symbol in frames[0].symbols]
    np.testing.assert_allclose(head.charges(features, frames[0]), expected, atol=1e-6)


def test_extensive_scalars_add_up(model, frames, tmp_path) -> None:
    mine = [atoms.copy() for atoms in frames]
    mass = {"H": 1.0, "C": 12.0, "N": 14.0, "O": 16.0}
    labels = [{"mass": sum(mass[s] for s in atoms.symbols)} for atoms in mine]
    path = write_labelled(tmp_path / "mine.traj", mine, labels)
    words = ["head=scalar", "key=mass", "unit=u", "extensive=true"]
    head = fit_head(model, path, configured(*words), say=quiet)
    assert head.description.extensive
    assert head.description.errors["mae"] < 1e-6
    assert head.description.guess["mae"] > 1.0


def test_units_are_converted(model, frames, tmp_path) -> None:
    path = planted_file(tmp_path / "mine.traj", model, frames, "dipole")
    written = ase.io.read(path, ":")
    labels = [{"moment": atoms.calc.results["dipole"] / 0.20819433} for atoms in written]
    for atoms in written:
        atoms.calc = None
    debye = write_labelled(tmp_path / "debye.traj", written, labels)
    words = ["head=dipole", "key=moment", "name=dipole", "unit=Debye"]
    ours = fit_head(model, path, configured("head=dipole"), say=quiet)
    theirs = fit_head(model, debye, configured(*words), say=quiet)
    np.testing.assert_allclose(theirs.weight, ours.weight, rtol=1e-6, atol=1e-7)
    assert theirs.description.unit == "e*A"


def test_classes_are_told_apart(model, frames, tmp_path) -> None:
    path = planted_file(tmp_path / "mine.extxyz", model, frames, "class")
    words = ["head=class", "key=planted", "split=structure"]
    head = fit_head(model, path, configured(*words), say=quiet)
    about = head.description
    assert about.classes == ["dull", "shiny"]
    assert about.errors["accuracy"] > 0.9 > about.guess["accuracy"]
    assert about.errors["log_loss"] < 0.5 * about.guess["log_loss"]


def test_logistic_regression_is_at_its_minimum() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 4))
    classes = rng.integers(3, size=60)
    found = fit(rows, classes, 3, penalty=2.0)
    excess = np.exp(found.log_probabilities(rows)) - np.eye(3)[classes]
    np.testing.assert_allclose(rows.T @ excess + 2.0 * found.weights, 0, atol=1e-4)
    np.testing.assert_allclose(excess.sum(axis=0), 0, atol=1e-4)


def test_ridge_is_the_solution_of_the_normal_equations_and_leaves_the_column_free() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5))
    column = rng.uniform(1, 2, size=40)
    targets = rows @ rng.normal(size=5) + 1000 * column + rng.normal(size=40)
    found = ridge(rows, targets, column)
    residual = rows @ found.weights + found.constant * column - targets
    np.testing.assert_allclose(rows.T @ residual + found.penalty * found.weights, 0, atol=1e-8)
    assert abs(column @ residual) < 1e-8
    assert found.constant == pytest.approx(1000, abs=1)


def test_noise_is_penalised_more_than_signal() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 40))
    noise = rng.normal(size=60)
    signal = rows @ rng.normal(size=40)
    assert ridge(rows, noise).penalty > 1e6 * ridge(rows, signal).penalty
    assert np.linalg.norm(ridge(rows, np.zeros(60)).weights) == 0
    assert np.linalg.norm(ridge(np.zeros((60, 2)), noise).weights) == 0


def test_compositions_and_rare_elements_stay_together(frames) -> None:
    rare = molecule("H2O")
    rare.symbols[0] = "S"
    with_rare = [*frames, rare]
    for seed in range(20):
        mask = held_out(with_rare, configured("head=dipole", f"seed={seed}"), Path("mine"))
        formulas = [atoms.get_chemical_formula(empirical=True) for atoms in with_rare]
        test = {formula for formula, out in zip(formulas, mask, strict=True) if out}
        assert test and not mask[-1]
        assert not test & {formula for formula, out in zip(formulas, mask, strict=True) if not out}
        assert 0.05 < mask.mean() < 0.35
    again = held_out(with_rare, configured("head=dipole", "seed=19"), Path("mine"))
    np.testing.assert_array_equal(mask, again)


def test_features_of_structures_are_means_of_the_readout(model, frames) -> None:
    found = structure_features(model, frames[:5])
    assert found.shape == (5, model.potential.config.readout_size)
    calculator = model.calculator(warn_outside=False)
    for row, atoms in zip(found, frames, strict=False):
        np.testing.assert_allclose(row, calculator.get_features(atoms).mean(axis=0), atol=1e-10)


# --- the command


def command(*words: object, monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["evenfield", "finetune", "head", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    found = capsys.readouterr()
    return int(end.value.code or 0), " ".join((found.out + found.err).split())


def test_command_writes_the_same_weights_and_one_head_more(
    model, folder, frames, tmp_path, monkeypatch, capsys
) -> None:
    dipoles = planted_file(tmp_path / "dipoles.extxyz", model, frames, "dipole")
    numbers = planted_file(tmp_path / "numbers.extxyz", model, frames, "scalar")
    run = {"monkeypatch": monkeypatch, "capsys": capsys}
    out = tmp_path / "with"

    code, text = command(folder, dipoles, out, "head=dipole", **run)
    assert code == 0, text
    assert "held out by composition" in text and "trivial guess" in text
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "mae" in model_zoo.load(out).heads["dipole"].description.errors

    # a second head into the same folder
    scalar = ["head=scalar", "key=planted", "unit=eV", "name=gap"]
    code, text = command(out, numbers, out, *scalar, **run)
    assert code == 0 and "with the heads dipole, gap" in text
    assert list(model_zoo.load(out).heads) == ["dipole", "gap"]
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    code, text = command(out, numbers, out, *scalar, **run)
    assert code == 1 and "has a head gap already: choose another name=, or replace it" in text
    code, text = command(out, numbers, out, *scalar, "--overwrite", **run)
    assert code == 0 and list(model_zoo.load(out).heads) == ["dipole", "gap"]
    code, text = command(folder, numbers, out, *scalar, **run)
    assert code == 1 and "already exists and holds a model" in text


def broken(atoms: Atoms, fault: str) -> None:
    """Change one labelled molecule so that it cannot be learned from."""
    results = atoms.calc.results
    if fault == "missing":
        atoms.calc = None
    elif fault == "shape":
        atoms.info["moment"] = [1.0, 2.0]
    elif fault == "nan":
        results["dipole"] = np.array([0.0, np.nan, 1.0])
    elif fault == "periodic":
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
    elif fault == "charged":
        atoms.info["charge"] = 1
    elif fault == "charge in words":
        atoms.info["charge"] = "plus"
    elif fault == "element":
        atoms.symbols[0] = "Xe"
    elif fault == "fused":
        atoms.positions[0] = atoms.positions[1]
    elif fault == "text":
        atoms.info["moment"] = "large"


@pytest.mark.parametrize(
    ("fault", "words", "message"),
    [
        ("missing", [], r"record 1 has no 'dipole': set key= to one of what it has"),
        ("shape", ["key=moment", "unit=e*A"], r"record 1 has 'moment' of shape \(2,\), not \(3,\)"),
        ("text", ["key=moment", "unit=e*A"], r"record 1 has 'moment' = 'large', which is no num"),
        ("nan", [], r"record 1 has 'dipole' that is not finite: remove"),
        ("periodic", [], r"record 1 cannot be used: a periodic structure has no dipole moment"),
        ("charged", [], r"record 1 cannot be used: .*net charge of 1 e depends on the origin"),
        ("charge in words", [], r"record 1 has the net charge .* = 'plus': give a number in e"),
        ("element", [], r"record 1 has Xe, which the model has not learned"),
        ("fused", [], r"record 1 has atoms .* closer than"),
    ],
)
def test_bad_records_are_named(model, tmp_path, fault, words, message) -> None:
    frames = molecules(copies=1)[:6]
    labels = [{"dipole": np.zeros(3), "moment": np.zeros(3)} for _ in frames]
    path = tmp_path / "mine.traj"
    write_labelled(path, frames, labels)
    broken(frames[1], fault)
    if frames[1].calc is not None:
        # else the results would not be written, as those of another structure
        frames[1].calc.atoms = frames[1].copy()
    ase.io.write(path, frames)
    with pytest.raises(EvenfieldError, match=message) as caught:
        fit_head(model, path, configured("head=dipole", *words), say=quiet)
    assert caught.value.file == str(path) and caught.value.remedy


def test_charges_must_add_up_to_the_net_charge(model, tmp_path) -> None:
    frames = molecules(copies=2)
    labels = [{"charges": np.zeros(len(atoms))} for atoms in frames]
    labels[3]["charges"] = np.ones(len(frames[3]))
    path = write_labelled(tmp_path / "mine.traj", frames, labels)
    with pytest.raises(EvenfieldError, match=r"record 3 has charges that add up to 4 e, and a net"):
        fit_head(model, path, configured("head=charges"), say=quiet)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5] * 24, r"record 0 has 'kind' = '0.5', which is no name of a class"),
        (["same"] * 24, r"has 1 different values of 'kind': give between 2 and 100 classes"),
    ],
)
def test_bad_classes_are_named(model, tmp_path, values, message) -> None:
    frames = molecules(copies=2)
    path = write_labelled(tmp_path / "mine.traj", frames, [{"kind": value} for value in values])
    with pytest.raises(EvenfieldError, match=message):
        fit_head(model, path, configured("head=class", "key=kind"), say=quiet)


def test_files_that_cannot_be_used(model, tmp_path) -> None:
    config = configured("head=dipole")
    with pytest.raises(EvenfieldError, match="absent"):
        fit_head(model, tmp_path / "absent.xyz", config, say=quiet)

    frames = [molecule("H2O") for _ in range(3)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, dipole=np.zeros(3))
    ase.io.write(tmp_path / "mine.traj", frames)
    with pytest.raises(EvenfieldError, match=r"one level of theory: say .*level_of_theory=PBE"):
        fit_head(model, tmp_path / "mine.traj", config, say=quiet)
    config = configured("head=dipole", "level_of_theory=PBE")
    with pytest.raises(EvenfieldError, match=r"none can be held out: .* set split=structure"):
        fit_head(model, tmp_path / "mine.traj", config, say=quiet)

    crystals = [bulk("C")]
    ase.io.write(tmp_path / "crystals.extxyz", crystals)
    words = ["head=scalar", "key=gap", "unit=eV"]
    with pytest.raises(EvenfieldError, match=r"record 0 has no 'gap': .* what it has: nothing"):
        fit_head(model, tmp_path / "crystals.extxyz", configured(*words), say=quiet)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["key=dipole"], "key 'head' is missing"),
        (["head=spin", "key=a"], "head: Input should be"),
        (["head=scalar"], "key: name the label that head=scalar learns"),
        (["head=scalar", "key=gap"], "unit: state that of 'gap', as in unit=eV"),
        (["head=dipole", "key=mu"], r"unit: state that of 'mu', as in unit=e\*A or Debye"),
        (["head=dipole", "unit=eV"], r"unit: 'eV' is not known: choose e\*A, Debye"),
        (["head=class", "key=kind", "unit=eV"], "unit: classes have none"),
        (["head=scalar", "key=energy", "unit=eV"], "'energy' has another meaning in results"),
        (["head=scalar", "key=band gap", "unit=eV"], "'band gap' is no name"),
        (["head=dipole", "extensive=true"], "extensive: dipole has no such choice"),
        (["head=dipole", "held_out=1"], "held_out"),
        (["head=dipole", "colour=red"], "unknown key 'colour'"),
    ],
)
def test_settings_that_cannot_be_used(words, message) -> None:
    with pytest.raises(SettingsError, match=message):
        configured(*words)
