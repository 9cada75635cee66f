"""Uncertainties in the calculator and their record, for a made-up record of a small model."""

from __future__ import annotations

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

from evenfield import model_zoo
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.uncertainty.conformal import Scores
from evenfield.model_zoo.uncertainty.distances import ElementGaussians
from evenfield.model_zoo.uncertainty.estimates import ADDED, Estimator
from evenfield.model_zoo.uncertainty.record import (
    UNCERTAINTY,
    LevelUncertainty,
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

    differences = np.array(members) - plain.forces.numpy()
    expected = np.einsum("mk,kna->mna", own.mixing, measures.forces)
    assert np.allclose(differences, expected, rtol=0, atol=1e-10)
    between = np.linalg.norm(differences[:, None] - differences[None], axis=3)  # (M, M, N)
    assert np.allclose(measures.disagreements(own.mixing), between.max((0, 1)), atol=1e-10)


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
