"""The order of callbacks has no meaning: any order gives the same weights, files and rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback
from evenfield.pretrain.loop.schedule import Schedule
from evenfield.pretrain.loop.trainer import Trainer

from optimizer_steps import FixedStream, batch_of, new_engine


CHANGES = {
    "max_steps": 40,
    "evaluate_every": 4,
    "evaluate_structures": 3,
    "average": {"decay": 0.9},
    "adaptive": {"rate": 1.0},
    "guards": {"spike": 5.0},
    "checkpoints": {"every": 10, "keep": 9},
}


class Spoil(Callback):
    """Ruins the weights once, in a phase in which nobody reads them: the run is set back."""

    def on_guard(self, loop, report) -> None:
        if report.step == 32:
            readout = loop.engine.train_module.potential.readout
            readout.weight.data.mul_(1000.0)
            readout.element_weight.data.fill_(50.0)


def outcome(out: str) -> dict[str, Any]:
    """Rows without times, tensors of all checkpoints, and states of callbacks."""
    rows = []
    for line in (Path(out) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.append({key: row.get(key) for key in ("event", "step", "loss", "force_mae", "note")})
    tensors = {}
    states = {}
    for path in sorted((Path(out) / "checkpoints").glob("step-*")):
        for file in path.glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                tensors[f"{path.name}/{file.stem}/{name}"] = tensor.flatten().tolist()
        manifest = json.loads((path / "manifest.json").read_text())
        states[path.name] = manifest["states"][0]["callbacks"]
    return {"rows": rows, "tensors": tensors, "states": states}


def test_any_order_of_the_callbacks_gives_the_same_run(run_config, monkeypatch):
    """With average, rollback, adaptive weights, validation, checkpoints, which read each other."""
    original = run._parts
    outcomes = []
    orders = []
    for seed in (None, 1):

        def shuffled(*arguments, seed=seed):
            parts = original(*arguments)
            parts.callbacks.append(Spoil())
            if seed is not None:
                random.Random(seed).shuffle(parts.callbacks)
            orders.append([type(callback).__name__ for callback in parts.callbacks])
            return parts

        monkeypatch.setattr(run, "_parts", shuffled)
        config = run_config(f"run-{seed}", **CHANGES)
        run.pretrain(config, quiet=True)
        outcomes.append(outcome(config.out))

    assert len(orders[0]) == 10
    assert orders[0] != orders[1]
    first, *others = outcomes
    assert [row["step"] for row in first["rows"] if row["note"]] == [35]
    assert set(first["states"]["step-00000040"]) == {"spike", "adaptive"}
    assert all(other == first for other in others)


def test_two_callbacks_of_one_name_are_a_mistake(train_structures):
    class Named(Callback):
        name = "mine"

    stream = FixedStream([batch_of(train_structures[:2])])
    with pytest.raises(AssertionError, match="callbacks of the same name"):
        Trainer(new_engine(0), stream, Schedule(1e-3), 1, [Named(), Named()])
