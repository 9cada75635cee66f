"""The wide refit: step 0 stays, rows are derivatives, width 0 is the usual refit, folders load."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.data_pipelines.batch import Batch
from evenfield.finetune.closed_form import by_directions
from evenfield.finetune.closed_form.by_directions import jacobian_by_directions, moved_atoms
from evenfield.finetune.closed_form.design_rows import (
    RefitConfig,
    Unknowns,
    design_rows,
    feature_jacobian,
)
from evenfield.finetune.closed_form.posterior import load_posterior
from evenfield.finetune.closed_form.refit import refit_readout
from evenfield.finetune.closed_form.strategy import Refit
from evenfield.finetune.closed_form.widen import narrowed, widened
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.strategy import Fitted
from evenfield.finetune.target import draw, open_target
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.hub.load import load
from evenfield.model_zoo.potential.weights_aside import put_weights


METALS = {13, 28, 29, 46, 47, 78, 79}
HEAD = 0


@pytest.fixture
def few(structures) -> list:
    """Crystals, a slab and a cluster, so that some have no volume."""
    return structures[::3]


def predicted(potential, structures) -> tuple[np.ndarray, np.ndarray]:
    found = predict(potential, structures)
    return found.energy[:, 1], found.forces[..., 1]


def test_step_0_is_unchanged_and_narrowing_gives_the_bits_back(potential, few):
    wide = widened(potential, 20, seed=3)
    assert wide.config.readout_size == 32
    for one, other in zip(predicted(potential, few), predicted(wide, few), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
    for name, value in narrowed(wide, 12).state_dict().items():
        assert torch.equal(value, potential.state_dict()[name]), name


def test_random_rows_have_the_spread_of_the_trained_ones_and_are_nested(potential):
    wide = widened(potential, 400, seed=3)
    rows = wide.readout.hidden.weight[12:]
    assert rows.std().item() == pytest.approx(potential.readout.hidden.weight.std().item(), rel=0.1)
    again = widened(potential, 400, seed=3)
    assert torch.equal(rows, again.readout.hidden.weight[12:])
    assert not torch.equal(rows, widened(potential, 400, seed=4).readout.hidden.weight[12:])


def test_rows_by_directions_are_those_by_reverse_passes(potential, few):
    levels = potential.config.levels_of_theory
    wide = widened(potential, 20, seed=3)
    labelled = [s.with_labels(stress=np.zeros((3, 3)) if s.pbc.all() else None) for s in few]
    batch = Batch.join([Batch.from_structure(s, 4.0, levels, torch.float64) for s in labelled])
    moved = moved_atoms(batch)
    assert moved.all()
    expected = feature_jacobian(wide, batch, [29, 78])
    found = jacobian_by_directions(wide, batch, [29, 78], moved)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-11, equal_nan=True)


def test_rows_are_finite_differences(potential, few):
    """Of the sum of every feature, when one atom moves."""
    levels = potential.config.levels_of_theory
    wide = widened(potential, 20, seed=3)
    structure = few[0]

    def summed(displacement: float) -> torch.Tensor:
        positions = structure.positions.astype(np.float64)  # a step is lost in float32
        positions[0, 1] += displacement
        moved = replace(structure, positions=positions)
        batch = Batch.from_structure(moved, 4.0, levels, torch.float64)
        with torch.no_grad():
            vectors, tiles = wide.edge_vectors(batch)
            return wide.features(batch.atomic_numbers, vectors, tiles).sum(0)

    slope = (summed(1e-4) - summed(-1e-4)) / 2e-4
    batch = Batch.from_structure(structure, 4.0, levels, torch.float64)
    forces = jacobian_by_directions(wide, batch, [], moved_atoms(batch))[1]
    np.testing.assert_allclose(forces[:, 0, 1], -slope, rtol=1e-5, atol=1e-7)


def test_of_a_large_structure_some_atoms_are_rows(potential, few, monkeypatch):
    monkeypatch.setattr(by_directions, "MOST_ATOMS_MOVED", 2)
    structure = next(s for s in few if len(s) == 4)
    wide = widened(potential, 20, seed=3)
    unknowns = Unknowns(32, np.array([], dtype=int), np.unique(structure.atomic_numbers))

    def rows(*, some: bool) -> tuple[np.ndarray, np.ndarray]:
        (batch,) = design_rows(wide, HEAD, [structure], unknowns, RefitConfig(), by_directions=some)
        matrix, target = batch.rows["forces"]
        used = np.isfinite(target)
        assert used.sum() == (6 if some else 12)
        return matrix[used], target[used]

    matrix, target = rows(some=True)
    whole_matrix, whole_target = rows(some=False)
    kept = np.flatnonzero(np.isin(whole_target, target))
    np.testing.assert_array_equal(whole_target[kept], target)
    np.testing.assert_allclose(whole_matrix[kept], matrix, rtol=0, atol=1e-10)


# --- the fit


def test_labels_of_random_features_are_found(potential, structures, labelled_by):
    """What the trained features cannot say: the wide refit follows, and says how wide it is."""
    truth = widened(potential, 8, seed=3)
    with torch.no_grad():
        truth.readout.weight[HEAD, 12:] = 1.0
    target = labelled_by(truth, structures)

    def refitted(sizes) -> tuple[float, int | None, int]:
        wide = widened(potential, 8, seed=3)
        report, posterior = refit_readout(
            wide, HEAD, target, known=METALS, known_e0=METALS, sizes=sizes
        )
        assert torch.equal(
            wide.readout.weight[HEAD, posterior.size :],
            torch.zeros(20 - posterior.size, dtype=torch.float64),
        )
        error = np.abs(np.diff(predict(wide, target).forces, axis=-1)).mean()
        return float(error), report.features, posterior.size

    plain, *_ = refitted([12])
    wide, features, size = refitted([12, 20])
    assert features == size == 20
    assert wide < 0.2 * plain


def test_noise_is_seldom_fitted_with_random_features(potential, structures, labelled_by):
    """Right labels with noise: left-out structures confirm no width, and the refit is the usual.

    Chance confirms one in 16 % of the draws of the noise.
    """
    right = labelled_by(potential, structures[:8])
    wide = widened(potential, 30, seed=3)
    widths = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noisy = [
            s.with_labels(
                energy=s.energy + rng.normal(0, 0.3),
                forces=s.forces + rng.normal(0, 1, s.forces.shape),
            )
            for s in right
        ]
        own = copy.deepcopy(wide)
        report, _ = refit_readout(own, HEAD, noisy, known=METALS, known_e0=METALS, sizes=[12, 42])
        widths.append(report.features)
    assert widths.count(12) >= 4


# --- the strategy


@pytest.fixture(scope="module")
def target(sets):
    """Few structures of platinum, without an element that is new: a wide refit has two blocks."""
    found = open_target(
        sets["platinum"], num_structures=8, seed=0, valid_share=0.2, fewest_to_hold_out=32
    )
    return replace(found, train=draw(sets["platinum"], 8, 0))


def test_width_0_is_the_usual_refit(model, target):
    plain = finetune(model, target, FineTuneConfig(strategy="refit"))
    config = FineTuneConfig(strategy="wide", refit={"random_features": 0})
    wide = finetune(model, target, config)
    assert wide.potential.config == plain.potential.config
    for name, value in wide.potential.state_dict().items():
        assert torch.equal(value, plain.potential.state_dict()[name]), name
    assert list(wide.stages) == ["pretrained", "step0", "wide"]


def test_saved_and_loaded_it_predicts_the_same(model, target, tmp_path):
    config = FineTuneConfig(strategy="wide", ensemble=2, refit={"random_features": 12})
    result = finetune(model, target, config)
    saved = load(save_finetuned(result, model, tmp_path / "wide"))
    size = saved.potential.config.readout_size
    assert size == result.refit.features
    assert size == load_posterior(tmp_path / "wide").size
    for one, other in zip(
        predicted(result.potential, target.train),
        predicted(saved.potential, target.train),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)

    # and can be fine-tuned like any other
    again = finetune(saved, target, FineTuneConfig(strategy="lora", gradient={"max_steps": 2}))
    assert again.potential.config.readout_size == size


def test_an_undone_change_leaves_a_readout_of_its_old_size(model, target, monkeypatch):
    """Posterior and record too."""
    monkeypatch.setattr(Refit, "finish", refused)
    config = FineTuneConfig(strategy="wide", ensemble=2, refit={"random_features": 12})
    result = finetune(model, target, config)
    size = model.potential.config.readout_size
    assert result.potential.config.readout_size == size
    assert result.refit.features == result.posterior.size == size
    assert result.posterior.bootstrap.shape == (2, len(result.posterior.covariance))


def refused(strategy, run, learned) -> Fitted:
    """A refit to widened features that held-out structures do not confirm."""
    report, posterior = run.solve(run.target.train)
    put_weights(run.potential, run.step0_weights)
    return Fitted(report, posterior, kept=0.0)
