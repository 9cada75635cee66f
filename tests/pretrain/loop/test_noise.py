"""Noise of labels: given, it scales errors; learned, it comes out as it was put in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo.potential.prediction import Prediction
from evenfield.pretrain import run
from evenfield.pretrain.errors import ResumeError
from evenfield.pretrain.loop.loss import LABELS, LossConfig, label_counts, weighted_loss
from evenfield.pretrain.loop.noise import LEAST, NoiseScales

from optimizer_steps import (
    LEVELS,
    batch_of,
    engine_steps,
    first_moments,
    new_engine,
    new_potential,
    parts_of_steps,
)


GIVEN = {
    "EMT": {"energy": 0.02, "forces": 0.1, "stress": 0.03},
    "EMT-scaled": {"energy": 0.5, "forces": 2.0},
}
WIDE = {"energy_width": 1e6, "forces_width": 1e6, "stress_width": 1e6}  # squared errors
# Standard deviation of a normal variable x for which the mean of min(x^2, |x|) is 1.
FACTOR = 1.3661
LEARNED = LossConfig(learn_noise=True)


def both_levels(structures) -> list:
    chosen = []
    for level in LEVELS:
        own = [s for s in structures if s.level_of_theory == level]
        # only a crystal has a stress
        chosen.append(next(s for s in own if s.pbc.all()))
    return chosen


def test_errors_in_units_of_the_given_noise(train_structures):
    """A loss with noise s is that of errors e / s, each by its own level; 1 changes nothing."""
    batch = batch_of(both_levels(train_structures))
    prediction = new_potential()(batch)
    config = LossConfig(noise=GIVEN)
    noise = NoiseScales(config, list(LEVELS))()
    counts = label_counts(batch)

    # the same labels, with errors divided by the noise
    own = noise[batch.head]
    scales = {
        "energy": own[:, 0],
        "forces": own[batch.structure_index, 1, None],
        "stress": own[:, 2, None, None],
    }
    labels = {}
    for name, scale in scales.items():
        error = prediction.labels[name] - batch.labels[name]
        labels[name] = batch.labels[name] + error / scale
    scaled = weighted_loss(Prediction(labels), batch, counts, config)

    loss = weighted_loss(prediction, batch, counts, config, noise)
    assert loss.item() == pytest.approx(scaled.item(), rel=1e-4)
    ones = torch.ones(2, 3)
    plain = weighted_loss(prediction, batch, counts, config)
    assert torch.equal(weighted_loss(prediction, batch, counts, config, ones), plain)
    assert loss.item() != pytest.approx(plain.item(), rel=0.1)


def test_gradient_of_the_learned_noise_is_the_closed_form(train_structures):
    """Of log s, for squared errors: weight times the mean of 1 - e^2 / (width s^2)."""
    structures = both_levels(train_structures)
    batch = batch_of([structures[0], structures[1].with_labels(stress=None)])
    config = LossConfig(learn_noise=True, noise=GIVEN, **WIDE)
    noise = NoiseScales(config, list(LEVELS))
    prediction = new_potential()(batch)
    counts = label_counts(batch)
    weighted_loss(prediction, batch, counts, config, noise()).backward()

    # by the chain rule: the parameter is the logarithm of s - least
    slope = noise.log_excess.detach().exp() / noise().detach()
    of_log_s = noise.log_excess.grad / slope
    num_atoms = batch.atoms_per_structure
    errors = {
        "energy": (prediction.energy - batch.labels["energy"]) / num_atoms,
        "forces": prediction.forces - batch.labels["forces"],
        "stress": prediction.stress - batch.labels["stress"],
    }
    for column, name in enumerate(LABELS):
        for head in range(2):
            # one structure of each head
            rows = batch.structure_index if name == "forces" else torch.arange(2)
            error = errors[name][rows == head].detach().double().flatten()
            error = error[torch.isfinite(error)]
            s = noise()[head, column].item()
            terms = 1 - error.square() / (1e6 * s * s)
            expected = getattr(config, name) * float(terms.sum() / counts[column])
            assert float(of_log_s[head, column]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert of_log_s[1, 2] == 0 and (of_log_s[0] != 0).all()


@pytest.mark.parametrize("width", [0.02, 1.0])
def test_learned_noise_of_each_level_is_what_was_put_in(train_structures, width):
    """Labels = prediction + Laplace noise, or normal noise, for which FACTOR holds."""
    known = torch.tensor([[0.03, 0.2, 0.01], [0.3, 0.05, 0.04]])  # (H, 3)
    structures = [s for s in train_structures if s.pbc.all()] * 4
    batch = batch_of(structures)
    generator = np.random.default_rng(0)
    own = known[batch.head]
    distribution = generator.laplace if width < 1 else generator.normal
    scales = {
        # of energies per atom
        "energy": batch.atoms_per_structure * own[:, 0],
        "forces": own[batch.structure_index, 1, None],
        "stress": own[:, 2, None, None],
    }
    labels = {}
    for name, scale in scales.items():
        label = batch.labels[name]
        drawn = torch.from_numpy(distribution(size=tuple(label.shape)))
        labels[name] = label + drawn.to(label) * scale
    prediction = Prediction(labels)

    config = LossConfig(
        learn_noise=True, energy_width=width, forces_width=width, stress_width=width
    )
    noise = NoiseScales(config, list(LEVELS))
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.05)
    counts = label_counts(batch)
    for _ in range(300):
        optimizer.zero_grad()
        weighted_loss(prediction, batch, counts, config, noise()).backward()
        optimizer.step()

    # A narrow Huber function is nearly Laplace's density, whose scale is the mean error.
    factor = 1.0 if width < 1 else FACTOR
    assert noise().detach() * factor == pytest.approx(known, rel=0.15)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_learned_noise_is_stepped_saved_and_taken_up_like_a_weight(train_structures, zero_stage):
    steps = [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures)[:4]]
    engine = new_engine(zero_stage, loss=LEARNED)
    before = engine.train_module.noise().detach().clone()
    engine_steps(engine, steps[:2])
    state = engine.state()
    assert not torch.isclose(engine.train_module.noise().detach(), before, rtol=1e-4).any()
    assert {"weight/noise.log_excess", "exp_avg/noise.log_excess"} <= state.keys()
    other = new_engine((zero_stage + 1) % 3, loss=LEARNED)
    other.load_state(state)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in state.items())
    assert engine_steps(engine, steps[2:]) == pytest.approx(
        engine_steps(other, steps[2:]), rel=1e-6
    )
    assert first_moments(engine.state()).keys() == first_moments(state).keys()


def test_run_learns_noise_and_goes_on_bit_for_bit(run_config):
    changes = {"loss": {"learn_noise": True}, "evaluate_every": 4}
    whole = run_config("whole", **changes)
    run.pretrain(whole, quiet=True)
    schedule = run_config("parts", **changes, checkpoints={"every": 5, "keep": 9})
    run.pretrain(schedule, quiet=True)
    for name in ("step-00000010", "step-00000012"):
        folder = Path(schedule.out) / "checkpoints" / name
        (folder / "manifest.json").unlink()
    run.pretrain(schedule, "must", quiet=True)
    one, other = (rows_of(config.out) for config in (whole, schedule))
    losses = [row["loss"] for row in one if row["event"] == "step"]
    assert losses == [row["loss"] for row in other if row["event"] == "step"]
    learned = [row["noise"] for row in one if row["event"] == "noise"]
    assert learned == [row["noise"] for row in other if row["event"] == "noise"]
    assert len(learned) == 3 and set(learned[0]) == set(LEVELS)
    for level in LEVELS:
        first = learned[0][level]["forces"]
        last = learned[-1][level]["forces"]
        assert LEAST[1] < last < first < 1


def test_run_without_learned_noise_cannot_go_on_with_it(run_config):
    run.pretrain(run_config(max_steps=2), quiet=True)
    with pytest.raises(ResumeError, match=r"loss\.learn_noise cannot change from False to True"):
        run.pretrain(run_config(max_steps=4, loss={"learn_noise": True}), "must", quiet=True)


def test_noise_must_name_every_level_or_none():
    with pytest.raises(
        EvenfieldError,
        match=r"loss\.noise: EMT-scaled is missing: name each of EMT, EMT-scaled, or leave it out",
    ):
        NoiseScales(LossConfig(noise={"EMT": {}}), list(LEVELS))
    with pytest.raises(EvenfieldError, match=r"loss\.noise: PBE is not a level of theory"):
        NoiseScales(LossConfig(noise=GIVEN | {"PBE": {}}), list(LEVELS))
    with pytest.raises(ValidationError, match="greater than 0"):
        LossConfig(noise={"EMT": {"forces": 0.0}})


def test_ratio_of_losses_is_refused_where_they_may_be_negative(run_config):
    with pytest.raises(ValidationError, match=r"guards\.spike compares losses by their ratio"):
        run_config(loss={"learn_noise": True}, guards={"spike": 3.0})


def rows_of(out: str) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
