"""A run whose network is compiled: the losses of a plain one, and a resume to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from evenfield.model_zoo.compile.padded_shape import PaddedShape
from evenfield.pretrain import streams
from evenfield.pretrain.errors import TrainingError
from evenfield.pretrain.run import pretrain

from added_callback import KillReadout, add_callback


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU"
    ),
]


TINY = {
    "channels": 4,
    "l_max": 1,
    "num_layers": 1,
    "correlation": 2,
    "readout_size": 8,
    "cutoff": 4.0,
}


def losses(config):
    rows = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    ]
    return [row["loss"] for row in rows if row["event"] == "step"]


@pytest.mark.filterwarnings("error:torch.compile failed")
def test_compiled_run_follows_the_plain_one_and_resumes_to_the_bit(run_config, monkeypatch, capsys):
    every = {"every": 6}
    plain = run_config("plain", checkpoints=every, model=TINY)
    compiled = run_config("compiled", compute={"compiled": True}, checkpoints=every, model=TINY)
    padded, pad = [], PaddedShape.pad
    monkeypatch.setattr(
        PaddedShape, "pad", lambda frame, *arguments: padded.append(frame) or pad(frame, *arguments)
    )
    pretrain(plain, quiet=True)
    assert not padded
    pretrain(compiled)
    assert "the first step compiles" in capsys.readouterr().out
    assert len(padded) > 6  # of 12 steps; a batch beyond the frame is not padded
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)

    resumed = run_config("resumed", compute={"compiled": True}, checkpoints=every, model=TINY)
    name = "checkpoints/step-00000006"
    shutil.copytree(Path(compiled.out) / name, Path(resumed.out) / name)
    pretrain(resumed, resume="must", quiet=True)
    whole, halves = (
        load_file(Path(c.out) / "model" / "model.safetensors") for c in (compiled, resumed)
    )
    assert all(whole[name].equal(halves[name]) for name in whole)


@pytest.mark.filterwarnings("error:torch.compile failed")
def test_a_compiled_readout_that_died_is_named(run_config, monkeypatch):
    add_callback(monkeypatch, KillReadout())
    with pytest.raises(TrainingError, match=r"step 40: the readout is dead"):
        pretrain(run_config(compute={"compiled": True}, model=TINY, max_steps=60), quiet=True)


def test_batches_that_differ_too_much_are_told(run_config, monkeypatch, capsys):
    monkeypatch.setattr(streams, "choose_padded_shape", lambda degrees: None)
    pretrain(run_config(compute={"compiled": True}, max_steps=2))
    assert "compute.compiled is left out" in capsys.readouterr().out
