"""SIGKILL at random instants, half of them inside a save: the benchmark with ten kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


KILLS = Path(__file__).parents[3] / "benchmarks" / "robustness" / "kills.py"


@pytest.mark.slow
def test_ten_kills_leave_the_weights_of_a_run_that_nobody_killed(tmp_path):
    result = tmp_path / "result.json"
    command = [
        sys.executable,
        str(KILLS),
        "--only",
        "resume",
        "--kills",
        "10",
        "--steps",
        "16",
        "--seed",
        "1",
        "--result",
        str(result),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads(result.read_text())["resume"]
    assert figures["kills"] == 10
    assert figures["kills inside a save"] >= 1
    assert figures["runs ended"] >= 1
    for failure in (
        "resumes that failed",
        "runs with other weights",
        "runs with other losses",
        "kills that lost more than an interval",
    ):
        assert figures[failure] == 0, figures
