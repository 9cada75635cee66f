"""Averaged weights: by hand, through a checkpoint, in validation and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evenfield.pretrain import run
from evenfield.pretrain.callbacks.average import AverageConfig, WeightAverage
from evenfield.pretrain.callbacks.callback import Callback, StepReport
from evenfield.pretrain.errors import ResumeError

from added_callback import add_callback
from optimizer_steps import largest_difference, new_potential, weights


def report(*bad: str) -> StepReport:
    return StepReport(1, 0, 1.0, 1e-3, 1, 1, 0.0, 1.0, 1.0, list(bad))


def test_average_by_hand_with_its_warm_up():
    """Decays of 0.1, 2/11 and then the stated 0.2; a step that was not taken does not count."""
    potential = new_potential()
    average = WeightAverage(potential, AverageConfig(decay=0.2))
    weight = potential.readout.hidden.bias
    with torch.no_grad():
        expected, values = weight.clone(), []
        for k, decay in enumerate((0.1, 2 / 11, 0.2, 0.2)):
            weight.fill_(float(k + 1))
            average.on_step(None, report())
            average.on_step(None, report("a bad structure"))
            expected = decay * expected + (1 - decay) * weight
            values.append((average.tensors()["readout.hidden.bias"], expected.clone()))
    assert all(torch.allclose(one, other, rtol=1e-5) for one, other in values)
    assert int(average.tensors()["updates"]) == 4


def test_averaged_weights_are_lent_and_taken_back_bit_for_bit():
    potential = new_potential()
    average = WeightAverage(potential, AverageConfig(decay=0.5))
    with torch.no_grad():
        for p in potential.parameters():
            p.add_(0.1 * torch.randn_like(p))
    own = weights(potential)
    with pytest.raises(RuntimeError, match="inside"), average.evaluated_weights():
        assert largest_difference(weights(potential), own) > 0.1
        raise RuntimeError("inside")
    assert largest_difference(weights(potential), own) == 0


class Stop(Callback):
    def on_step(self, trainer, report) -> None:
        if report.step == 6:
            trainer.stop.by = "a test"


def test_run_exports_the_average_and_a_resume_has_the_same_bits(run_config, monkeypatch):
    settings = {
        "average": {"decay": 0.9},
        "evaluate_every": 4,
        "checkpoints": {"every": 4, "keep": 9},
    }
    whole = run_config("whole", **settings)
    model = run.pretrain(whole, quiet=True)
    with monkeypatch.context() as patch:
        add_callback(patch, Stop())
        assert run.pretrain(run_config("parts", **settings), quiet=True) is None
    parts = run.pretrain(run_config("parts", **settings), "auto", quiet=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (model, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    saved = Path(whole.out) / "checkpoints" / "step-00000012"
    average, trained = (
        load_file(saved / f"{name}.safetensors") for name in ("callbacks", "engine")
    )
    assert torch.equal(one["readout.hidden.weight"], average["average/readout.hidden.weight"])
    assert not torch.equal(
        one["readout.hidden.weight"], trained["weight/potential.readout.hidden.weight"]
    )


def test_validation_is_of_the_average_and_training_is_undisturbed_by_it(run_config):
    rows = {}
    for decay in (0.0, 0.9):
        config = run_config(f"run-{decay}", average={"decay": decay}, evaluate_every=4, max_steps=8)
        run.pretrain(config, quiet=True)
        rows[decay] = [
            json.loads(line)
            for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
        ]
    losses, errors = (
        [[row[key] for row in rows[decay] if row["event"] == event] for decay in rows]
        for event, key in (("step", "loss"), ("evaluation", "force_mae"))
    )
    assert losses[0] == losses[1]
    assert len(errors[0]) == 2 and all(a != b for a, b in zip(*errors, strict=True))


def test_run_without_an_average_cannot_go_on_with_one(run_config):
    run.pretrain(run_config(max_steps=2), quiet=True)
    with pytest.raises(ResumeError, match=r"average\.decay cannot change from 0\.0 to 0\.9"):
        run.pretrain(run_config(max_steps=4, average={"decay": 0.9}), "auto", quiet=True)


def test_run_with_an_average_goes_on_without_one(run_config):
    run.pretrain(run_config(max_steps=2, average={"decay": 0.9}), quiet=True)
    assert run.pretrain(run_config(max_steps=4), "must", quiet=True) is not None
