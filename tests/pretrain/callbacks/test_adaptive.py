"""Weights that follow the validation error: the rule by hand, the bound, the run and its resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from ase.data import atomic_numbers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.adaptive import AdaptiveConfig, updated
from evenfield.pretrain.callbacks.callback import Callback

from added_callback import add_callback


def errors_of(**errors: float) -> torch.Tensor:
    table = torch.full((119,), math.nan)
    for z, error in errors.items():
        table[int(z[1:])] = error
    return table


def test_one_step_by_hand():
    """Mean 2: gains of -1/2, 0 and +1/2."""
    weight = updated(None, errors_of(z1=1.0, z6=2.0, z8=3.0), AdaptiveConfig(rate=0.2, bound=10))
    assert weight[1] == pytest.approx(math.exp(-0.1)) and weight[6] == pytest.approx(1)
    assert weight[8] == pytest.approx(math.exp(0.1))
    assert (weight[[2, 118]] == 1).all()  # without labels


def test_steps_add_up_and_an_element_without_labels_keeps_its_weight():
    config = AdaptiveConfig(rate=0.5, bound=100)
    first = updated(None, errors_of(z1=1.0, z8=3.0), config)
    second = updated(first, errors_of(z1=2.0), config)
    assert second[8] == first[8] and second[1] == first[1]
    third = updated(first, errors_of(z1=1.0, z8=3.0), config)
    assert third[8] == pytest.approx(first[8] ** 2)


def test_with_a_reference_the_excess_counts():
    """Relative excesses 0 (better than the reference), 0.5 and 1, with the mean 0.5."""
    config = AdaptiveConfig(rate=0.2, bound=10, reference="evaluation.json")
    reference = errors_of(z1=2.0, z6=2.0, z8=1.0, z9=1.0)
    weight = updated(None, errors_of(z1=1.0, z6=3.0, z8=2.0, z7=5.0), config, reference)
    assert weight[1] == pytest.approx(math.exp(-0.1))
    assert weight[6] == pytest.approx(1)
    assert weight[8] == pytest.approx(math.exp(0.1))
    # the reference knows no nitrogen, and the validation no fluorine
    assert (weight[[7, 9]] == 1).all()


def test_a_reference_is_read_before_the_run(run_config, tmp_path):
    with pytest.raises(ValidationError, match="reference has no effect without a rate"):
        AdaptiveConfig(reference="evaluation.json")
    missing = {"rate": 1.0, "reference": str(tmp_path / "evaluation.json")}
    config = run_config("missing", adaptive=missing)
    with pytest.raises(EvenfieldError, match=r"evaluation\.json"):
        run.pretrain(config, quiet=True)
    assert not Path(config.out).exists()


def test_a_run_follows_its_reference(run_config):
    """Its weights are not those of a run that follows the plain errors."""
    first = run_config("first", evaluate_every=3, max_steps=3)
    run.pretrain(first, quiet=True)
    reference = Path(first.out) / "model" / "evaluation.json"

    weights = []
    for name, settings in {"plain": {}, "followed": {"reference": str(reference)}}.items():
        config = run_config(name, evaluate_every=3, adaptive={"rate": 1.0, **settings})
        run.pretrain(config, quiet=True)
        newest = sorted((Path(config.out) / "checkpoints").glob("step-*"))[-1]
        manifest = json.loads((newest / "manifest.json").read_text())
        weights.append(manifest["states"][0]["callbacks"]["adaptive"]["element_weight"])
    assert weights[0] != weights[1]
    assert len(set(weights[1])) > 1


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=30), st.floats(0.01, 5), st.floats(1.1, 50)
)
def test_weights_stay_within_the_bound_and_keep_the_order_of_the_errors(errors, rate, bound):
    table, weight = torch.full((119,), math.nan), None
    table[1 : len(errors) + 1] = torch.tensor(errors)
    for _ in range(5):
        weight = updated(weight, table, AdaptiveConfig(rate=rate, bound=bound))
    own = weight[1 : len(errors) + 1]
    assert (own <= bound * 1.0001).all() and (own >= 0.9999 / bound).all()
    order = torch.tensor(errors).argsort()
    assert (own[order].diff() >= -1e-5 * bound).all()


def test_no_errors_change_nothing():
    assert torch.equal(
        updated(None, torch.full((119,), math.nan), AdaptiveConfig(rate=1)), torch.ones(119)
    )
    assert torch.equal(updated(None, errors_of(z1=0.0), AdaptiveConfig(rate=1)), torch.ones(119))


class Stop(Callback):
    """Ask for a stop as a signal does; one more step is taken."""

    def on_step(self, trainer, report) -> None:
        if report.step == 4:
            trainer.stop.by = "a test"


def test_run_favours_the_worst_element_and_a_resume_has_the_same_bits(run_config, monkeypatch):
    settings = {
        "evaluate_every": 3,
        "adaptive": {"rate": 1.0},
        "checkpoints": {"every": 4, "keep": 9},
    }
    whole = run_config("whole", **settings)
    model = run.pretrain(whole, quiet=True)
    lines = (Path(whole.out) / "metrics.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, lines) if row["event"] == "evaluation")
    errors = {
        s: row["force_mae"]
        for s, row in first["per_element"].items()
        if row["force_mae"] is not None
    }
    manifest = json.loads(
        (Path(whole.out) / "checkpoints" / "step-00000004" / "manifest.json").read_text()
    )
    weight = manifest["states"][0]["callbacks"]["adaptive"]["element_weight"]
    worst = atomic_numbers[max(errors, key=lambda symbol: errors[symbol])]
    assert max(weight) == weight[worst] > 1 > min(weight)

    with monkeypatch.context() as patch:
        add_callback(patch, Stop())
        assert run.pretrain(run_config("parts", **settings), quiet=True) is None
    parts = run.pretrain(run_config("parts", **settings), resume="must", quiet=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (model, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = run.pretrain(run_config("plain", evaluate_every=3), quiet=True)
    assert not torch.equal(
        load_file(plain / "model.safetensors")["readout.weight"], one["readout.weight"]
    )


def test_run_without_validation_structures_is_refused(emt_file, run_config, tmp_path):
    config = ConvertConfig(columns={"level_of_theory": "level"}, valid_share=0.0)
    convert(emt_file, tmp_path / "data", config)
    with pytest.raises(
        EvenfieldError,
        match=r"no validation structure for adaptive\.rate: convert it with valid_share",
    ):
        run.pretrain(run_config(data=str(tmp_path / "data"), adaptive={"rate": 1.0}), quiet=True)
