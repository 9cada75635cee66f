"""The losses of 200 steps are what they were: to the last bit on the kind of machine that wrote them.

Rounding differs between processors and between versions of torch and numpy, and grows along a trajectory. So the file
says on what it was written; elsewhere the first 20 losses must agree closely and the course of the rest roughly, which
still shows a changed model, loss, optimizer, schedule or order of the data.

To write it anew after a wanted change: EVENFIELD_WRITE_GOLDEN=1 pytest tests/pretrain/test_golden.py
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from evenfield.pretrain import run


GOLDEN = Path(__file__).parent / "golden_losses.json"


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
    return {
        "processor": f"{platform.machine()} {model}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def test_losses_of_200_steps_are_what_they_were(run_config):
    config = run_config(max_steps=200)
    run.pretrain(config, quiet=True)
    rows = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    if os.environ.get("EVENFIELD_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"machine": machine(), "losses": losses}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    if machine() == golden["machine"]:
        assert losses == golden["losses"]
    assert losses[:20] == pytest.approx(golden["losses"][:20], rel=2e-4)
    course, expected = (
        np.reshape(values, (10, 20)).mean(1) for values in (losses, golden["losses"])
    )
    assert course == pytest.approx(expected, rel=0.1)
