"""The loss: values, missing labels, broken predictions, and the same however it is split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenfield.model_zoo.potential.prediction import Prediction
from evenfield.pretrain.loop.loss import LossConfig, label_counts, weighted_loss

from optimizer_steps import batch_of, new_potential


# widths in the middle of the errors of `prediction_near`, so that there are errors on both sides
CONFIG = LossConfig(
    energy=2.0,
    forces=3.0,
    stress=5.0,
    energy_width=0.05,
    forces_width=0.2,
    stress_width=0.01,
)


def crystals(structures, num: int) -> list:
    return [s for s in structures if s.pbc.all()][:num]


def prediction_near(batch, noise: float = 1.0) -> Prediction:
    """Labels with an error, so that both branches of each Huber function occur."""
    generator = torch.Generator().manual_seed(1)

    def off(label: torch.Tensor, width: float) -> torch.Tensor:
        error = noise * width * torch.randn(label.shape, generator=generator, dtype=label.dtype)
        return torch.nan_to_num(label) + error

    # the loss divides errors of energies by the number of atoms
    num_atoms = batch.atoms_per_structure
    energy_error = 0.08 * num_atoms * torch.randn(len(num_atoms), generator=generator)
    labels = {
        "energy": torch.nan_to_num(batch.labels["energy"]) + energy_error,
        "forces": off(batch.labels["forces"], 0.3),
        "stress": off(batch.labels["stress"], 0.02),
    }
    return Prediction(labels)


def loss_of(prediction, batch, config=CONFIG, counts=None) -> float:
    if counts is None:
        counts = label_counts(batch)
    return weighted_loss(prediction, batch, counts, config).item()


def huber(error: np.ndarray, width: float) -> np.ndarray:
    """Huber (1964) over its width: slope 1 for large errors."""
    size = np.abs(error)
    inside = 0.5 * error**2
    outside = width * (size - 0.5 * width)
    return np.where(size <= width, inside, outside) / width


def test_value_is_the_weighted_sum_of_mean_huber_errors(train_structures):
    batch = batch_of(crystals(train_structures, 5))
    prediction = prediction_near(batch)
    error = {}
    for name, predicted in prediction.labels.items():
        error[name] = (predicted - batch.labels[name]).double().numpy()
    energy = error["energy"] / batch.atoms_per_structure.numpy()
    assert (np.abs(energy) < 0.05).any() and (np.abs(energy) > 0.05).any()
    expected = 2 * huber(energy, 0.05).mean() + 3 * huber(error["forces"], 0.2).mean()
    expected += 5 * huber(error["stress"], 0.01).mean()
    assert loss_of(prediction, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_each_term_has_its_own_switch(train_structures, label):
    batch = batch_of(crystals(train_structures, 3))
    prediction = prediction_near(batch)
    whole = loss_of(prediction, batch)
    terms = []
    for name in prediction.labels:
        without = CONFIG.model_copy(update={name: 0.0})
        terms.append(whole - loss_of(prediction, batch, without))
    assert sum(terms) == pytest.approx(whole)

    exact = prediction.with_labels(**{label: batch.labels[label]})
    off = CONFIG.model_copy(update={label: 0.0})
    assert loss_of(exact, batch) == pytest.approx(loss_of(prediction, batch, off))


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_missing_label_does_not_count(train_structures, label):
    """The structure without it weighs as much as if it were not there, for that term alone."""
    structures = crystals(train_structures, 3)
    unlabelled = structures[2].with_labels(**{label: None})
    batch = batch_of([*structures[:2], unlabelled])
    weights = {"energy": 0, "forces": 0, "stress": 0} | {label: 1.0}
    term = LossConfig(**weights)
    prediction = prediction_near(batch)

    kept = batch_of(structures[:2])
    rows = {}
    for name, value in prediction.labels.items():
        rows[name] = value[: len(kept.labels[name])]
    same = Prediction(rows)
    assert loss_of(prediction, batch, term) == pytest.approx(loss_of(same, kept, term), rel=1e-6)
    assert loss_of(prediction, batch, term) > 0


def test_no_labels_at_all_give_zero_and_not_nan(train_structures):
    bare = [s.with_labels(energy=None, forces=None, stress=None) for s in train_structures[:2]]
    batch = batch_of(bare)
    assert loss_of(prediction_near(batch), batch) == 0.0


def test_missing_labels_and_open_boundaries_leave_gradients_finite(train_structures):
    """Stress of a slab or a cluster is NaN; a NaN inside a division once reached all gradients."""
    open_ones = [s for s in train_structures if not s.pbc.all()]
    assert any(s.pbc.any() for s in open_ones) and any(not s.pbc.any() for s in open_ones)
    without_forces = open_ones[0].with_labels(forces=None)
    without_energy = open_ones[0].with_labels(energy=None)
    crystal = crystals(train_structures, 1)[0]
    batch = batch_of([*open_ones, without_forces, without_energy, crystal])
    potential = new_potential()
    prediction = potential(batch)
    assert prediction.stress[: len(open_ones)].isnan().all()

    weighted_loss(prediction, batch, label_counts(batch), LossConfig()).backward()
    gradients = [parameter.grad for parameter in potential.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_broken_prediction_is_not_taken_for_a_missing_label(train_structures, label):
    """Else a model that predicts NaN has a loss of zero, and nobody stops it."""
    batch = batch_of(crystals(train_structures, 2))
    prediction = prediction_near(batch)
    prediction.labels[label].view(-1)[0] = torch.nan
    assert np.isnan(loss_of(prediction, batch))
    prediction.labels[label].view(-1)[0] = torch.inf
    assert np.isinf(loss_of(prediction, batch))


def test_stress_label_of_a_structure_that_is_not_periodic_does_not_count(train_structures):
    """Some codes write one for slabs; the potential has none to compare."""
    slab = next(s for s in train_structures if not s.pbc.all())
    labelled = slab.with_labels(stress=np.ones((3, 3)))
    crystal = crystals(train_structures, 1)[0]
    with_label, without = batch_of([labelled, crystal]), batch_of([slab, crystal])
    assert torch.equal(label_counts(with_label), label_counts(without))
    potential = new_potential()
    assert loss_of(potential(with_label), with_label) == loss_of(potential(without), without)


def test_counts_are_those_of_the_labels(train_structures):
    first, second, third = crystals(train_structures, 3)
    batch = batch_of(
        [first, second.with_labels(energy=None, forces=None), third.with_labels(stress=None)]
    )
    assert label_counts(batch).tolist() == [2, 3 * (len(first) + len(third)), 18]


def test_parts_add_up_to_the_whole_at_the_same_counts(train_structures):
    """So it does not matter on which rank or in which batch a structure falls."""
    structures = [s for s in train_structures if len(s) != 4][:4] + train_structures[:4]
    assert len({len(s) for s in structures}) > 2
    potential = new_potential()
    whole = batch_of(structures)
    counts = label_counts(whole)
    total = loss_of(potential(whole), whole)
    for cut in (1, 3, 6):
        parts = [batch_of(structures[:cut]), batch_of(structures[cut:])]
        assert sum(label_counts(part) for part in parts).tolist() == counts.tolist()
        losses = [loss_of(potential(part), part, counts=counts) for part in parts]
        assert sum(losses) == pytest.approx(total, rel=1e-5)


def test_force_weight_acts_as_repetition(train_structures):
    """An atom of weight 3 counts as three atoms of weight 1, in the sum and in the count."""
    one = crystals(train_structures, 1)[0]
    term = LossConfig(energy=0, forces=1, stress=0)
    heavy = batch_of([one, one])
    thrice = batch_of([one, one, one, one])
    num_atoms = len(one)
    heavy.atom_weight[:num_atoms] = 3.0

    prediction = prediction_near(heavy)
    labels = {}
    for name, value in prediction.labels.items():
        of_first = value[: len(value) // 2]
        labels[name] = torch.cat([value, of_first, of_first])
    expected = loss_of(Prediction(labels), thrice, term)
    assert loss_of(prediction, heavy, term) == pytest.approx(expected, rel=1e-6)
    assert label_counts(heavy)[1] == label_counts(thrice)[1] == 12 * num_atoms


def test_small_error_in_a_large_energy_is_seen(train_structures):
    """1 meV in 1e6 eV would be lost in float32."""
    large = train_structures[0].with_labels(energy=-1.0e6)
    batch = batch_of([large])
    term = LossConfig(energy=1, forces=0, stress=0)
    energy = torch.tensor([-1.0e6 + 0.001 * len(large)], dtype=torch.float64)
    prediction = prediction_near(batch).with_labels(energy=energy)
    # 0.02 is the default width
    assert loss_of(prediction, batch, term) == pytest.approx(0.5 * 0.001**2 / 0.02, rel=1e-3)


def test_weight_of_the_energy_goes_to_its_final_one_or_stays():
    rising = LossConfig(energy=0.5, final_energy=50.0)
    assert [rising.at(share).energy for share in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 5.0, 50.0])
    assert CONFIG.at(0.7) == CONFIG


def test_a_weight_cannot_rise_from_zero():
    with pytest.raises(ValueError, match="which is 0: set that above 0"):
        LossConfig(energy=0.0, final_energy=10.0)
