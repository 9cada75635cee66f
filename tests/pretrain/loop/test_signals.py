"""Signals before the loop, repeated ones, and the watchdog that ends a hung rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from evenfield.pretrain.callbacks.guards import Watchdog
from evenfield.pretrain.loop.signals import StopRequest, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_repeated_signals_ask_once(number, capfd):
    stop = StopRequest()
    with listening(stop):
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert stop.by == number.name
    assert capfd.readouterr().err.count("saving and stopping") == 1


def test_second_interrupt_acts_at_once():
    stop = StopRequest()
    with listening(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.by == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_before_the_loop_does_not_kill_a_rank(run_config, tmp_path):
    """Sent seconds before torch is imported: one step is taken and saved."""
    config = run_config()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "evenfield.cli", "pretrain", "--recipe", str(recipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    caught = f"/proc/{process.pid}/status"
    while not _catches_usr1(caught):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "SIGUSR1: saving and stopping" in err and "stopped at step 1 by SIGUSR1, saved" in out


def _catches_usr1(status: str) -> bool:
    with open(status) as file:  # noqa: PTH123 - a file of /proc
        mask = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1)


def _hang(folder, steps: int) -> None:
    watchdog = Watchdog(folder, rank=3, minutes=0.5 / 60)
    with watchdog.watching():
        for _ in range(steps):
            time.sleep(0.2)
            watchdog.on_report(None, None)
        time.sleep(0.1 if steps else 20)


@pytest.mark.parametrize("steps", [0, 5])
def test_watchdog_ends_a_hung_rank_with_its_stacks_and_spares_a_slow_one(tmp_path, steps):
    """Half a second without a step is a hang; one second in five steps is none."""
    pid = os.fork()
    if pid == 0:
        _hang(tmp_path, steps)
        os._exit(0)
    started = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = tmp_path / "hang-rank-3.txt"
    if steps:
        assert code == 0 and not left.exists()
    else:
        assert code == 1 and time.monotonic() - started < 10
        text = left.read_text()
        assert "Rank 3 made no step for" in text and "in _hang" in text
