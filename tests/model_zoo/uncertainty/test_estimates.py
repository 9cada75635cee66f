"""Uncertainties in the calculator and their record, for a made-up record of a small model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io.trajectory import Trajectory
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress
from safetensors.numpy import load as safetensors_load

from evenfield import model_zoo
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.package.sanity_record import SanityWarning
from evenfield.model_zoo.uncertainty.conformal import Scores
from evenfield.model_zoo.uncertainty.distances import ElementGaussians
from evenfield.model_zoo.uncertainty.estimates import ADDED, Estimator
from evenfield.model_zoo.uncertainty.record import (
    UNCERTAINTY,
    LevelUncertainty,
    StressUncertainty,
    level_digest,
    uncertainties_of,
    uncertainty_file,
)


SIZE = 16
KNOWN = np.array([29, 79])


def made_up(num_directions: int = 1) -> LevelUncertainty:
    """A record of the level EMT of `small_model` with numbers from a generator."""
    rng = np.random.default_rng(0)
    features = rng.normal(0.3, 0.2, (200, SIZE))
    gaussians = ElementGaussians.of(features, np.repeat(KNOWN, 100))
    gaussians.thresholds[:] = [50.0, 1e-3]
    square = rng.normal(size=(SIZE + 2, SIZE + 2))
    return LevelUncertainty(
        level="EMT",
        calibrated_on="valid",
        factor=np.linalg.cholesky(0.01 * square @ square.T),
        e0_elements=KNOWN,
        directions=rng.normal(0, 0.1, (num_directions, SIZE)),
        mixing=rng.normal(size=(5, num_directions)),
        gaussians=gaussians,
        exponents=np.array([0.5, 0.3, 0.1, 0.2]),
        offsets=np.linspace(-2, 0, 119),
        floors=np.array([0.02, 0.001, 0.001, 0.01]),
        groups=[np.array([29]), np.empty(0, int)],
        force_scores=[Scores.of(rng.exponential(size=150), 30), Scores.of(np.arange(9.0), 9)],
        energy_scores=Scores.of(rng.exponential(size=40), 40),
        energy_scale=1.7,
        alignment=0.4,
        stress=StressUncertainty(
            exponents=np.array([0.2, 0.5, 0.3, 0.1]),
            floors=np.array([1e-4, 1e-5, 1e-5, 0.01]),
            offset=-1.3,
            scores=Scores.of(rng.exponential(size=60), 25),
        ),
    )


@pytest.fixture
def with_record(folder: Path) -> Path:
    """`small_model` with the record."""
    model = model_zoo.load(folder)
    attach(folder, {UNCERTAINTY: uncertainty_file(model.potential, {"EMT": made_up()})})
    return folder


@pytest.fixture
def atoms() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[1] = "Au"
    atoms.rattle(0.1, seed=0)
    return atoms


def batch_of(atoms: Atoms, potential: Potential) -> Batch:
    structure = Structure.from_atoms(atoms, "EMT", "one")
    config = potential.config
    return Batch.from_structure(structure, config.cutoff, config.levels_of_theory, torch.float64)


@pytest.mark.parametrize("num_directions", [1, 3])
def test_committee_is_the_model_with_other_weights(
    folder: Path, atoms: Atoms, num_directions: int
) -> None:
    """Forces of each member by a potential of its own, and the largest of their differences."""
    own = made_up(num_directions)
    potential = model_zoo.load(folder).potential.double().eval()
    head = potential.config.levels_of_theory.index("EMT")
    batch = batch_of(atoms, potential)
    with torch.no_grad():
        estimator = Estimator(own, potential, head)
        prediction = estimator.potential(batch)
        measures = estimator.measures(batch, prediction)
        plain = potential(batch)
        members = []
        for member in own.mixing @ own.directions:
            other = Potential(potential.config).double().eval()
            other.load_state_dict(potential.state_dict())
            other.readout.weight[head] += torch.tensor(member)
            members.append(other(batch).forces.numpy())
    assert torch.equal(prediction.forces, plain.forces)
    assert torch.equal(prediction.energy, plain.energy)
    assert torch.equal(prediction.stress, plain.stress)

    differences = np.array(members) - plain.forces.numpy()
    expected = np.einsum("mk,kna->mna", own.mixing, measures.forces)
    assert np.allclose(differences, expected, rtol=0, atol=1e-10)
    between = np.linalg.norm(differences[:, None] - differences[None], axis=3)  # (M, M, N)
    assert np.allclose(measures.disagreements(own.mixing), between.max((0, 1)), atol=1e-10)

    # stress is linear in the weights too: along one direction after the other
    of_directions = []
    with torch.no_grad():
        for direction in own.directions:
            other = Potential(potential.config).double().eval()
            other.load_state_dict(potential.state_dict())
            other.readout.weight[head] += torch.tensor(direction)
            of_directions.append(other(batch).stress.numpy() - plain.stress.numpy())
    deviation = np.sqrt(np.square(of_directions).sum((0, 2, 3)))
    assert deviation.min() > 1e-6
    assert np.allclose(measures.stress_ingredients[1], deviation, rtol=1e-8, atol=0)


def test_stress_radius_is_made_of_four_measures(with_record: Path, atoms: Atoms) -> None:
    """Size, committee, energy per volume by the posterior, and distance, put together by hand."""
    model = model_zoo.load(with_record)
    calculator = model.calculator(level_of_theory="EMT", dtype="float64", uncertainty=True)
    calculator.calculate(atoms)
    own = model.uncertainties["EMT"]
    stress = own.stress
    assert stress is not None
    potential = model_zoo.load(with_record).potential.double().eval()
    estimator = Estimator(own, potential, potential.config.levels_of_theory.index("EMT"))
    batch = batch_of(atoms, potential)
    with torch.no_grad():
        found = estimator.measures(batch, estimator.potential(batch)).stress_ingredients[:, 0]

    tensor = voigt_6_to_full_3x3_stress(calculator.results["stress"])
    assert found[0] == pytest.approx(np.linalg.norm(tensor), rel=1e-9)
    features = float(potential.scale[1]) * calculator.get_features(atoms).sum(0)
    variance = features @ (own.factor @ own.factor.T)[:SIZE, :SIZE] @ features
    assert found[2] == pytest.approx(variance**0.5 / atoms.get_volume(), rel=1e-6)
    assert found[3] == pytest.approx(calculator.results["distance"].mean(), rel=1e-6)
    powers = np.prod((found + stress.floors) ** stress.exponents) * np.exp(stress.offset)
    expected = stress.scores.quantile(0.9) * powers
    assert calculator.results["stress_radius"] == pytest.approx(expected, rel=1e-6)


def test_there_is_no_radius_of_a_stress_that_does_not_exist(folder: Path, atoms: Atoms) -> None:
    """Of slabs and molecules; and of records without one, as older ones are."""
    model = model_zoo.load(folder)
    attach(folder, {UNCERTAINTY: uncertainty_file(model.potential, {"EMT": made_up()})})
    calculator = model_zoo.load(folder).calculator(level_of_theory="EMT", uncertainty=True)
    for pbc in ([True, True, False], [False, False, False]):
        atoms.pbc = pbc
        calculator.calculate(atoms)
        assert not {"stress", "stress_radius"} & set(calculator.results)
    atoms.pbc = True
    calculator.calculate(atoms)
    assert calculator.results["stress_radius"] > 0

    older = replace(made_up(), stress=None)
    content = uncertainty_file(model.potential, {"EMT": older})
    assert not any("stress" in name for name in safetensors_load(content))
    attach(folder, {UNCERTAINTY: content})
    calculator = model_zoo.load(folder).calculator(level_of_theory="EMT", uncertainty=True)
    calculator.calculate(atoms)
    assert "stress" in calculator.results
    assert set(ADDED) - set(calculator.results) == {"stress_radius"}


def test_a_record_of_an_older_version_has_no_stress_and_is_read() -> None:
    """Those before 2026-12 have no arrays about it; all else is the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SanityWarning)
        model = model_zoo.load("evenfield-1")
        own = model.uncertainties["mp_pbe"]
        older = uncertainty_file(model.potential, {"mp_pbe": replace(own, stress=None)})
        assert len(older) < len(model.attachments[UNCERTAINTY])
        before = replace(model, attachments=model.attachments | {UNCERTAINTY: older})
    results = []
    for one in (model, before):
        calculator = one.calculator(uncertainty=True, warn_outside=False)
        calculator.calculate(bulk("NaCl", "rocksalt", a=5.64))
        results.append(calculator.results)
    assert 0 < results[0]["stress_radius"] < 1
    assert "stress_radius" not in results[1]
    np.testing.assert_array_equal(results[0]["forces_radius"], results[1]["forces_radius"])


def test_energy_deviation_is_that_of_the_posterior(with_record: Path, atoms: Atoms) -> None:
    model = model_zoo.load(with_record)
    calculator = model.calculator(level_of_theory="EMT", dtype="float64", uncertainty=True)
    calculator.calculate(atoms)
    scale = float(model.potential.scale[1])
    features = scale * calculator.get_features(atoms).sum(0)
    row = np.concatenate([features, [3, 1]])
    own = model.uncertainties["EMT"]
    variance = row @ (own.factor @ own.factor.T) @ row
    found = calculator.results
    assert found["energy_std"] == pytest.approx(own.energy_scale * variance**0.5, rel=1e-9)
    quantile = own.energy_scores.quantile(0.9)
    assert found["energy_radius"] == pytest.approx(quantile * found["energy_std"], rel=1e-9)


def test_results_have_shapes_and_fit_together(with_record: Path, atoms: Atoms) -> None:
    model = model_zoo.load(with_record)
    plain = model.calculator(level_of_theory="EMT")
    plain.calculate(atoms)
    assert not set(ADDED) & set(plain.results)

    calculator = model.calculator(level_of_theory="EMT", uncertainty=True, coverage=0.8)
    calculator.calculate(atoms)
    found = calculator.results
    assert set(ADDED) == set(found) - set(plain.results)
    for name, value in plain.results.items():
        assert np.array_equal(value, found[name]), name
    # the model itself does not pay for the calculator
    assert not model.potential.slope_functions

    assert found["forces_std"].shape == (4, 3) and found["distance"].shape == (4,)
    # gold has a threshold that nothing meets
    assert found["inside"].tolist() == [True, False, True, True]
    own = model.uncertainties["EMT"]
    spread = np.linalg.norm(found["forces_std"], axis=1)
    quantiles = own.force_quantiles(0.8)[own.group_of(atoms.numbers)]
    assert np.allclose(found["forces_radius"], quantiles * spread)
    # nine scores cannot say what covers 99 %
    wide = model.calculator(level_of_theory="EMT", uncertainty=True, coverage=0.99)
    wide.calculate(atoms)
    assert np.isinf(wide.results["forces_radius"]).tolist() == [False, True, False, False]


def test_uncertainty_moves_with_the_atoms(with_record: Path, atoms: Atoms) -> None:
    """Turned and translated, numbers stay and vectors turn; nothing of an older step is left."""
    model = model_zoo.load(with_record)
    used = model.calculator(level_of_theory="EMT", dtype="float64", uncertainty=True)
    turned = atoms.copy()
    turned.rotate(90, "z", rotate_cell=True)
    for structure in (atoms, turned, atoms * (2, 1, 1), turned):
        used.calculate(structure)
        fresh = model.calculator(level_of_theory="EMT", dtype="float64", uncertainty=True)
        fresh.calculate(structure)
        for name in ADDED:
            assert np.allclose(used.results[name], fresh.results[name], atol=1e-10), name
    first = model.calculator(level_of_theory="EMT", dtype="float64", uncertainty=True)
    first.calculate(atoms)
    # x becomes y and y becomes -x: deviations have no sign
    assert np.allclose(
        used.results["forces_std"], first.results["forces_std"][:, [1, 0, 2]], atol=1e-8
    )
    assert used.results["max_committee_disagreement"] == pytest.approx(
        first.results["max_committee_disagreement"], abs=1e-8
    )


def test_ase_reads_and_writes_what_it_knows(
    with_record: Path, atoms: Atoms, tmp_path: Path
) -> None:
    calculator = model_zoo.load(with_record).calculator(level_of_theory="EMT", uncertainty=True)
    atoms.calc = calculator
    with BFGS(atoms, trajectory=str(tmp_path / "relax.traj"), logfile=None) as relaxation:
        relaxation.run(fmax=0.01, steps=2)
    energy = atoms.get_potential_energy()
    with Trajectory(tmp_path / "relax.traj") as frames:
        assert frames[-1].get_potential_energy() == pytest.approx(energy)
    ase.io.write(tmp_path / "one.extxyz", atoms)
    assert ase.io.read(tmp_path / "one.extxyz").get_potential_energy() == pytest.approx(energy)
    with ase.db.connect(tmp_path / "one.db") as database:
        database.write(atoms)
    assert ase.db.connect(tmp_path / "one.db").get(1).energy == pytest.approx(energy)
    # i-PI asks like this, and so does `atoms.get_properties`
    exported = atoms.get_properties(["energy", "forces", "stress"])
    assert exported["energy"] == energy and not set(ADDED) & set(exported)


def test_record_is_read_back_and_holds_for_its_weights_only(folder: Path) -> None:
    potential = model_zoo.load(folder).potential
    own = made_up(2)
    content = uncertainty_file(potential, {"EMT": own})
    found = uncertainties_of(potential, {UNCERTAINTY: content})["EMT"]
    for name in ("factor", "directions", "mixing", "exponents", "offsets", "floors"):
        assert np.allclose(getattr(found, name), getattr(own, name), rtol=1e-6), name
    for name in ("means", "whitening", "axes", "variances", "thresholds", "elements", "counts"):
        expected = getattr(own.gaussians, name)
        assert np.allclose(getattr(found.gaussians, name), expected, rtol=1e-6), name
    assert np.allclose(found.force_quantiles(0.9), own.force_quantiles(0.9))
    assert [scores.structures for scores in found.force_scores] == [30, 9]
    assert (found.energy_scale, found.alignment, found.calibrated_on) == (1.7, 0.4, "valid")
    assert found.stress is not None and own.stress is not None
    assert np.allclose(found.stress.exponents, own.stress.exponents, rtol=1e-6)
    assert np.allclose(found.stress.floors, own.stress.floors, rtol=1e-6)
    assert found.stress.offset == pytest.approx(-1.3, rel=1e-6)
    assert (found.stress.scores.number, found.stress.scores.structures) == (60, 25)
    quantile = own.stress.scores.quantile(0.9)
    assert found.stress.scores.quantile(0.9) == pytest.approx(quantile, rel=1e-6)
    # what is read has the digest of what was written; other radii have another
    assert level_digest(found) == level_digest(own)
    assert level_digest(replace(own, stress=None)) != level_digest(own)
    wider = replace(own, energy_scale=1.8)
    assert level_digest(wider) != level_digest(own)

    with torch.no_grad():
        potential.readout.weight[0, 0] += 1e-6
    assert uncertainties_of(potential, {UNCERTAINTY: content}) == {}
    assert uncertainties_of(potential, {UNCERTAINTY: b"no record"}) == {}
    assert uncertainties_of(potential, {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"level_of_theory": "PBE", "uncertainty": True},
            "copper has no record of the uncertainty of PBE with these weights: it has those of "
            "EMT; make it with `evenfield finetune attach MODEL DATA`",
        ),
        ({"coverage": 1.0}, "coverage=1.0: give a number between 0 and 1"),
        ({"coverage": float("nan")}, "coverage=nan: give"),
        (
            {"level_of_theory": "EMT", "uncertainty": True, "compiled": True},
            "compiled=True and uncertainty=True exclude each other",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(with_record: Path, options: dict, message: str) -> None:
    with pytest.raises(EngineError) as told:
        model_zoo.load(with_record).calculator(**options)
    assert message in str(told.value)
