"""The benchmark of heads runs, on few molecules."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_benchmark_of_heads_runs(tmp_path, capsys) -> None:
    pytest.importorskip("tblite", reason="labels of the benchmark")
    out = tmp_path / "figures.json"
    main = runpy.run_path(str(ROOT / "benchmarks" / "property_heads.py"))["main"]
    measured = main(["--structures", "80", "--seeds", "0", "--derivatives", "--out", str(out)])
    assert measured == json.loads(out.read_text())
    assert measured["structures"] == 80
    assert measured["charge head, network"]["charge_r"][0] > 0.8
    assert 0 <= measured["gap below the median, network"]["accuracy"][0] <= 1
    assert "dipole head, network, and derivatives" in capsys.readouterr().out
