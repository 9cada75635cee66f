"""metrics.jsonl as it is read: resumed, killed, damaged; and the figure of learning curves."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from evenfield.core.files import FileError
from evenfield.pretrain.monitor.learning_curves import draw_learning_curves
from evenfield.pretrain.monitor.rows import line_of
from evenfield.pretrain.monitor.run_metrics import BadMetricsError, RunMetrics


def step_row(step: int, **changes: object) -> dict:
    row = {"event": "step", "step": step, "epoch": 0, "loss": 2.0 / step, "gradient_norm": 1.0}
    rates = {"structures_per_s": 50.0, "edges_per_s": 5000.0, "data_wait_share": 0.02}
    return row | rates | {"seconds": 0.5} | changes


def validation_row(step: int, mae: float | None) -> dict:
    row = {"event": "evaluation", "step": step, "split": "valid"}
    counts = {"num_structures": 3, "num_atoms": 20}
    return row | counts | {"energy_mae_per_atom": 0.01, "force_mae": mae}


def write(path: Path, rows: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    rows = [step_row(step) for step in range(1, 31)]
    rows.insert(20, validation_row(20, 0.3))
    rows.append({"event": "noise", "step": 30, "noise": []})
    again = step_row(10, loss=99.0)
    path = write(tmp_path / "metrics.jsonl", [*rows, again], end='{"event": "step", "st')
    metrics = RunMetrics.read(path)
    assert [row["step"] for row in metrics.steps] == list(range(1, 31))
    assert metrics.column("loss")[9] == 99.0
    assert [validation.step for validation in metrics.validations] == [20]
    assert metrics.validations[0].errors.force_mae == 0.3
    assert (metrics.last_step, metrics.seconds) == (30, pytest.approx(15))
    assert metrics.structures_seen == pytest.approx(30 * 25)
    assert metrics.typical("edges_per_s") == 5000.0
    assert np.isnan(metrics.typical("nothing"))


def test_flipped_bit_of_a_row_is_never_another_number(tmp_path):
    """As it is read, and as a resumed run keeps it."""
    path = tmp_path / "metrics.jsonl"
    rows = [step_row(step) for step in range(1, 4)]
    whole = "".join(line_of(row) for row in rows).encode()
    path.write_bytes(whole)
    assert RunMetrics.read(path).steps == rows

    generator = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        # not in the last line, which may be a torn one
        place = generator.randrange(len(line_of(rows[0])) * 2)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = RunMetrics.read(path).steps
        except (BadMetricsError, FileError):
            continue
        # what was hit is a blank, or the name of the checksum
        known = [{key: row[key] for key in rows[0]} for row in found]
        assert known == rows


def test_damaged_line_in_the_middle_is_named(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [], end='{"event": "st\n' + json.dumps(step_row(1)))
    with pytest.raises(BadMetricsError, match=r"metrics\.jsonl: line 1 is damaged"):
        RunMetrics.read(path)
    with pytest.raises(FileError, match="evenfield pretrain"):
        RunMetrics.read(tmp_path / "nowhere.jsonl")


def test_validations_without_a_label_are_left_out_of_its_curve(tmp_path):
    rows = [step_row(1), validation_row(1, None), step_row(2), validation_row(2, 0.2)]
    metrics = RunMetrics.read(write(tmp_path / "metrics.jsonl", rows))
    steps, values = metrics.validated(lambda errors: errors.force_mae)
    assert (steps.tolist(), values.tolist()) == ([2.0], [0.2])
    assert metrics.validated(lambda errors: errors.stress_mae)[0].size == 0


def test_curves_of_two_runs_share_the_panels_and_names(tmp_path):
    rows = [step_row(step) for step in range(1, 41)] + [validation_row(20, 0.3)]
    metrics = RunMetrics.read(write(tmp_path / "metrics.jsonl", rows))
    figure = draw_learning_curves({"one": metrics, "two": metrics}, last_step=100)
    loss, force, *_ = figure.axes
    assert [text.get_text() for text in loss.get_legend().texts] == ["one", "two"]
    assert [line.get_label() for line in force.lines] == ["one", "two"]
    assert loss.get_xlim() == (0, 100)
    # a loss with learned noise can be negative, and then its axis is linear
    rows = [step_row(step, loss=1.0 - step) for step in range(1, 5)]
    below_zero = RunMetrics.read(write(tmp_path / "metrics.jsonl", rows))
    assert draw_learning_curves({"run": below_zero}).axes[0].get_yscale() == "linear"
