"""Checkpoints: resume is exact, and no kill at any instant leaves a run without a whole one."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evenfield.core.ranks import start_distributed
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback
from evenfield.pretrain.checkpoints.checkpoints import (
    choose_checkpoint,
    load_checkpoint,
    save_checkpoint,
    whole_checkpoints,
)
from evenfield.pretrain.errors import NoCheckpointError, ResumeError
from evenfield.pretrain.loop import soap

from added_callback import add_callback
from killed_while_saving import TinyEngine


SUPPORT = Path(__file__).parents[2] / "support"


# --- exact resume


class Stop(Callback):
    """Ask for a stop as a signal does; one more step is taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer, report) -> None:
        if report.step == self.step - 1:
            trainer.stop.by = "a test"


@pytest.mark.parametrize(
    ("optimizer", "zero_stage", "stop"),
    [
        ("soap", 0, 4),
        ("adamw", 0, 4),
        ("adamw", 1, 4),
        ("adamw", 2, 4),
        ("soap", 0, 6),
        ("soap", 0, 7),
    ],
)
def test_resumed_run_has_the_bits_of_a_whole_one(
    run_config, monkeypatch, optimizer, zero_stage, stop
):
    """In the middle of an epoch, at its end, and after it, for each way to share the optimizer.

    SOAP looks at its eigenvectors every step here, so that their state counts.
    """
    monkeypatch.setattr(soap, "REFRESH", 1)
    settings = {"optimizer": {"name": optimizer}, "engine": {"zero_stage": zero_stage}}
    whole = run.pretrain(run_config("whole", **settings), quiet=True)
    with monkeypatch.context() as patch:
        add_callback(patch, Stop(stop))
        assert run.pretrain(run_config("parts", **settings), quiet=True) is None
    torch.manual_seed(99)  # what happened in between must not matter
    parts = run.pretrain(run_config("parts", **settings), resume="must", quiet=True)
    one, other = (load_file(model / "model.safetensors") for model in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = {name: figures(Path(run_config(name).out)) for name in ("whole", "parts")}
    assert rows["whole"] == rows["parts"]
    epochs = [epoch for _, epoch, _ in rows["whole"]]
    assert epochs == [0] * 6 + [1] * 6


def figures(out: Path) -> list[tuple[int, int, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["epoch"], row["loss"]) for row in rows]


# --- folders


def save_steps(folder: Path, *steps: int, keep: int = 10) -> None:
    start_distributed()
    for step in steps:
        assert save_checkpoint(folder, step, TinyEngine(step), {"epoch": step}, keep) is None


def loaded(folder: Path) -> tuple[int, int, int]:
    """The step by the manifest, by the weights and by the trainer's state."""
    engine = TinyEngine()
    found = load_checkpoint(folder, engine)
    return found.step, engine.weight, found.states[0]["epoch"]


def test_what_was_saved_comes_back(tmp_path):
    start_distributed()
    stream = {"finished": [[0, 4, 2], [7, 7, 1]], "used": {"5": 2}}
    tensors = {"average/a": torch.tensor([0.5])}
    about = {"config": {"seed": 3}}
    save_checkpoint(tmp_path, 7, TinyEngine(77), stream, 2, tensors, about)
    expected = torch.rand(3)
    engine = TinyEngine()
    found = load_checkpoint(tmp_path, engine)
    assert (found.step, found.states, found.skipped) == (7, [stream], [])
    assert found.manifest["config"] == {"seed": 3}
    assert engine.weight == 77
    assert found.tensors == tensors
    assert torch.equal(torch.rand(3), expected)  # the random numbers go on


def test_newest_are_kept_and_latest_names_the_newest(tmp_path):
    save_steps(tmp_path, 5, 100, 20000, 1000000, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest",
        "step-00020000",
        "step-01000000",
    ]
    assert (tmp_path / "latest").read_text() == "step-01000000"
    assert loaded(tmp_path) == (1000000,) * 3


def shorten(checkpoint: Path) -> None:
    os.truncate(checkpoint / "engine.safetensors", 3)


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def lose_file(checkpoint: Path) -> None:
    (checkpoint / "engine.safetensors").unlink()


def garble_manifest(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])


def empty_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("{}")


TEARS = pytest.mark.parametrize(
    "tear", [shorten, lose_manifest, lose_file, garble_manifest, empty_manifest]
)


@TEARS
def test_torn_checkpoint_is_passed_over(tmp_path, tear):
    save_steps(tmp_path, 1, 2, 3)
    tear(tmp_path / "step-00000003")
    assert loaded(tmp_path) == (2, 2, 2)


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (shorten, r"engine.safetensors has 3 of \d+ bytes"),
        (lose_manifest, "manifest.json is missing"),
        (lose_file, "engine.safetensors is missing"),
        (garble_manifest, "manifest.json is garbled"),
        (empty_manifest, "manifest.json is garbled"),
    ],
)
def test_what_is_skipped_is_named_with_its_reason(tmp_path, tear, reason):
    save_steps(tmp_path, 1, 2, 3)
    tear(tmp_path / "step-00000003")
    name, skipped = choose_checkpoint(tmp_path)
    assert name == "step-00000002" and len(skipped) == 1
    assert re.fullmatch(rf"step-00000003 \({reason}\)", skipped[0])


@TEARS
def test_torn_checkpoint_does_not_count_among_those_kept(tmp_path, tear):
    save_steps(tmp_path, 1, 2)
    tear(tmp_path / "step-00000002")
    save_steps(tmp_path, 3, keep=2)
    assert [p.name for p in whole_checkpoints(tmp_path)] == ["step-00000001", "step-00000003"]


def test_torn_checkpoint_is_written_over_when_the_run_gets_there_again(tmp_path):
    save_steps(tmp_path, 1, 2)
    shorten(tmp_path / "step-00000002")
    save_steps(tmp_path, 2)
    assert loaded(tmp_path) == (2, 2, 2)


def test_left_over_temporary_folder_is_in_nobodys_way(tmp_path):
    save_steps(tmp_path, 1)
    leftover = tmp_path / ".tmp-step-00000002"
    leftover.mkdir()
    (leftover / "engine.safetensors").write_bytes(b"half")
    assert choose_checkpoint(tmp_path) == (
        "step-00000001",
        [".tmp-step-00000002 (unfinished save)"],
    )
    save_steps(tmp_path, 3)
    assert loaded(tmp_path) == (3, 3, 3) and not leftover.exists()


def test_nothing_to_resume_from_says_what_there_is(tmp_path):
    with pytest.raises(
        NoCheckpointError,
        match=r"none: there is no whole checkpoint to resume from: name the folder of the run",
    ):
        loaded(tmp_path / "none")
    save_steps(tmp_path, 4)
    shorten(tmp_path / "step-00000004")
    reason = r"\(damaged: step-00000004 \(engine.safetensors has 3 of \d+ bytes\)\): name the"
    with pytest.raises(NoCheckpointError, match=reason):
        loaded(tmp_path)


def test_checkpoint_of_another_format_is_refused_with_one_clear_error(tmp_path):
    """The format before stated sizes only. Skipping it would start the run from the beginning."""
    save_steps(tmp_path, 1)
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["format"] = 2
    manifest["files"] = {name: stated["bytes"] for name, stated in manifest["files"].items()}
    path.write_text(json.dumps(manifest | {"versions": {"evenfield": "0.0.1"}}))
    with pytest.raises(ResumeError, match=r"evenfield 0\.0\.1, whose checkpoints have another"):
        loaded(tmp_path)


# --- flipped bits


def test_no_flipped_bit_of_a_checkpoint_is_loaded(tmp_path):
    """Any bit of any file leads to the checkpoint before, and says which file it is in."""
    save_steps(tmp_path, 1, 2)
    generator = random.Random(0)
    newest = tmp_path / "step-00000002"
    files = sorted(newest.iterdir())
    assert {path.name for path in files} == {
        "engine.safetensors",
        "rng.safetensors",
        "manifest.json",
    }
    for path in files:
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            place = generator.randrange(len(whole))
            damaged[place] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            name, skipped = choose_checkpoint(tmp_path)
            if name == "step-00000002":
                # a blank of the layout that became another blank
                assert json.loads(damaged) == json.loads(whole)
                continue
            assert name == "step-00000001"
            assert path.name in skipped[0]
        path.write_bytes(whole)
    assert loaded(tmp_path) == (2, 2, 2)


@pytest.mark.parametrize("number", [1e-320, 0.1, float("nan"), 12345678901234567890])
def test_checksum_of_a_manifest_survives_the_file(tmp_path, number):
    start_distributed()
    state = {"losses": [number], "used": {5: 2}}
    assert save_checkpoint(tmp_path, 1, TinyEngine(1), state, keep=1) is None
    assert choose_checkpoint(tmp_path) == ("step-00000001", [])


# --- kills


def test_kill_at_any_instant_of_saving_leaves_a_whole_checkpoint(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SUPPORT / "killed_while_saving.py"), str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > 8
    saved_again = {name: outcome for name, outcome in outcomes.items() if name.startswith("again")}
    assert all(step == 2 for step in saved_again.values()), saved_again
    first_time = {name: outcome for name, outcome in outcomes.items() if name not in saved_again}
    assert set(first_time.values()) == {1, 2}, (
        first_time
    )  # killed before the new one had its name, and after
