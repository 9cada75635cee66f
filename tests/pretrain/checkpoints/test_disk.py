"""A full disk: the run continues, older checkpoints stay, and nothing is lost silently."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evenfield.core.files import FileError
from evenfield.core.ranks import start_distributed
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback
from evenfield.pretrain.callbacks.metrics import Metrics
from evenfield.pretrain.checkpoints.checkpoints import (
    choose_checkpoint,
    problem_of,
    save_checkpoint,
    whole_checkpoints,
)
from evenfield.pretrain.errors import TrainingError

from added_callback import add_callback
from killed_while_saving import TinyEngine


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system itself fails writes beyond `size` bytes into a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullDisk(Callback):
    """Full after step 3, with room again after step 7."""

    def __init__(self) -> None:
        self.limit = no_file_above(1000)

    def on_step(self, trainer, report) -> None:
        if report.step == 3:
            self.limit.__enter__()
        elif report.step == 7:
            self.limit.__exit__(None, None, None)


def test_run_outlives_a_full_disk(run_config, monkeypatch, capsys):
    add_callback(monkeypatch, FullDisk())
    config = run_config(max_steps=9, checkpoints={"every": 2, "keep": 9})
    assert run.pretrain(config) is not None
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "step 4: NOT saved: " in said and "File too large" in said and "step 6: NOT saved: " in said
    )
    assert "rows are kept in memory until they can be written" in said
    names = sorted(path.name for path in (Path(config.out) / "checkpoints").iterdir())
    assert names == ["latest", "step-00000002", "step-00000008", "step-00000009"]
    assert all(
        problem_of(path) is None for path in (Path(config.out) / "checkpoints").glob("step-*")
    )
    rows = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, 10))


def test_rows_that_could_not_be_written_come_later_and_whole(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.write({"event": "step", "step": 1})
    with no_file_above(45):  # the second row fits in part
        metrics.write({"event": "step", "step": 2})
        metrics.write({"event": "step", "step": 3})
    metrics.write({"event": "step", "step": 4})
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_disk_that_is_full_at_a_resume_is_named_and_keeps_the_rows(tmp_path):
    """It was a traceback. Rows after the resumed step are dropped by writing the file again."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    for step in range(1, 9):
        metrics.write({"event": "step", "step": step})
    metrics.close()
    before = path.read_bytes()
    with no_file_above(45), pytest.raises(FileError, match="File too large"):
        Metrics(path, 6)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_stop_that_cannot_be_saved_is_an_error_that_says_so(run_config, monkeypatch):
    config = run_config()
    folder = Path(config.out) / "checkpoints"

    class Ask(Callback):
        def on_step(self, trainer, report) -> None:
            if report.step == 3:
                folder.write_text("not a folder")
                trainer.stop.by = "a test"

    add_callback(monkeypatch, Ask())
    with pytest.raises(
        TrainingError, match=r"stopped at step 4 by a test, not saved: .*checkpoints.*: (Not|File)"
    ):
        run.pretrain(config, quiet=True)


def test_half_written_save_is_cleared_away_and_the_one_before_stays(tmp_path):
    start_distributed()
    assert save_checkpoint(tmp_path, 1, TinyEngine(1), {}, keep=1) is None
    with no_file_above(50):
        assert "File too large" in save_checkpoint(tmp_path, 2, TinyEngine(2), {}, keep=1)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert save_checkpoint(tmp_path, 3, TinyEngine(3), {}, keep=1) is None
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000003"]


def test_others_may_read_a_checkpoint_as_far_as_the_umask_lets_them(tmp_path):
    start_distributed()
    before = os.umask(0o027)
    try:
        assert save_checkpoint(tmp_path, 1, TinyEngine(1), {}, keep=1) is None
    finally:
        os.umask(before)
    for path in (tmp_path / "step-00000001").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    start_distributed()
    assert save_checkpoint(tmp_path, 1, TinyEngine(1), {}, keep=1) is None
    # root may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "engine.safetensors")
    with pytest.raises(FileError, match=r"engine\.safetensors: you may not read it"):
        choose_checkpoint(tmp_path)
