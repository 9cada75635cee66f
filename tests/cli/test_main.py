"""What a user sees when a command fails: one line for a mistake, a traceback for a bug."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest
import typer

from evenfield import cli
from evenfield.core.errors import EvenfieldError, EvenfieldWarning


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a command that raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["evenfield"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_error_for_users_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = EvenfieldError("has NaN\nforces", file="mine.xyz", record=3, remedy="remove it")
    assert fail_with(error, monkeypatch) == 1
    assert capsys.readouterr().err == "error: mine.xyz: record 3 has NaN forces: remove it\n"


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError, ImportError, AssertionError])
def test_bug_keeps_its_traceback(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(kind("the inner reason"), monkeypatch) == 70
    message = capsys.readouterr().err
    assert message.startswith("Traceback") and "in failing" in message
    assert f"{kind.__name__}: the inner reason" in message
    *_, last = message.splitlines()
    assert f"evenfield {version('evenfield')}" in last and "report it" in last


def test_a_full_disk_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/model")
    assert fail_with(full, monkeypatch) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: runs/model: No space left on device: make room on the disk")
    assert message.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_room_does_not_help_a_disk_that_takes_nothing(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(OSError(number, os.strerror(number), "runs/model"), monkeypatch) == 1
    message = capsys.readouterr().err
    assert message == f"error: runs/model: {os.strerror(number)}: write to another disk\n"


def test_warning_for_users_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def warning() -> None:
        warnings.simplefilter("always")
        warnings.warn("the structure is\na molecule", EvenfieldWarning, stacklevel=1)
        warnings.warn("of another library", UserWarning, stacklevel=1)

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["evenfield"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    ours, others = capsys.readouterr().err.split("\n", 1)
    assert ours == "warning: the structure is a molecule"
    assert __file__ in others and "UserWarning: of another library" in others


def test_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == ""


def test_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "evenfield.cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
