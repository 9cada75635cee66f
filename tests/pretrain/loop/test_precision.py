"""bfloat16: products only; what comes out, what is kept, and that a run learns as in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evenfield.pretrain.loop.loss import label_counts
from evenfield.pretrain.run import pretrain

from optimizer_steps import batch_of, new_engine


def test_predictions_are_close_but_not_equal_and_all_that_is_kept_is_float32(train_structures):
    batch = batch_of(train_structures[:4])
    outcomes = {}
    for precision in ("float32", "bfloat16"):
        engine = new_engine(0, precision=precision)
        outcomes[precision] = engine.train_module.predict(batch)
        engine.backward(engine.forward(batch, lambda: label_counts(batch)))
        parameters = engine.train_module.parameters()
        assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}
        engine.step(1e-3)
        floats = {
            t.dtype
            for name, t in engine.state().items()
            if name.startswith(("weight/potential.backbone", "exp_avg"))
        }
        assert floats <= {torch.float32, torch.float64}
    exact, rounded = (outcomes[name].forces.detach() for name in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    error = float((exact - rounded).norm() / exact.norm())
    assert 1e-5 < error < 0.05
    assert outcomes["bfloat16"].energy.dtype == torch.float64


def test_run_in_bfloat16_follows_the_losses_of_float32(run_config):
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = run_config(precision, compute={"precision": precision})
        pretrain(config, quiet=True)
        rows = [
            json.loads(line)
            for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
        ]
        losses[precision] = [row["loss"] for row in rows if row["event"] == "step"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
