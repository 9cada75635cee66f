"""The report of the weights against what a stream does with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase.data import chemical_symbols
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.data_pipelines.census.weights import WeightConfig
from evenfield.data_pipelines.checks.weight_report import weight_report
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.stream import Stream


def test_expected_copies_are_those_of_the_stream(data_set):
    config = WeightConfig(beta=0.8)
    report = weight_report(data_set, config)
    levels = ["EMT", "EMT-scaled"]
    settings = StreamConfig(weights=config)
    stream = Stream(Source(data_set, settings, cutoff=3.0, levels_of_theory=levels))
    epochs, copies = 100, Counter()
    for window in range(epochs * stream.windows_per_epoch):
        for structure in stream.window(window):
            copies.update(structure.elements.tolist())
    for symbol, _, after, _ in report.rows():
        assert copies[chemical_symbols.index(symbol)] / epochs == pytest.approx(after, rel=0.05)


def test_weights_of_one_leave_every_share_as_it_is(data_set, train_structures):
    report = weight_report(data_set, WeightConfig())
    counts = Counter(z for s in train_structures for z in s.elements.tolist())
    assert {z: int(n) for z, n in enumerate(report.before) if n} == dict(counts)
    np.testing.assert_array_equal(report.before, report.after)
    assert (report.effective_share, report.smallest, report.largest) == (1, 1, 1)
    assert report.num_structures == len(train_structures)


def test_command_prints_and_draws(data_set, tmp_path):
    result = CliRunner().invoke(app, ["data", "weights", str(data_set), "beta=0.8", "over=mean"])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "weighted epoch is worth" in words
    assert "worst tenth of elements -3.5 % (-4.6 to +3.7)" in words
    assert "beta 0.8 was not measured, only 0.5" in words and "one seed only" in words
    assert (data_set / "weights.png").read_bytes().startswith(b"\x89PNG")
    (data_set / "weights.png").unlink()
