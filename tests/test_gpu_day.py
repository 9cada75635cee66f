"""The script for a short loan of a GPU begins, finds its packages, and keeps what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def run(out: Path, minutes: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", "benchmarks/gpu_day.sh", str(out), minutes],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_nothing_is_begun_after_the_time(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    known = {"facts": {}, "figures": {"inference, eager, float32": {"64": {"seconds": 1.0}}}}
    (out / "gpu.json").write_text(json.dumps(known))
    done = run(out, "0")
    assert done.returncode == 0, done.stderr
    assert "GPU: none, so this measures the CPU" in done.stdout
    assert "the time is out; the same command goes on" in done.stdout
    assert json.loads((out / "gpu.json").read_text()) == known
