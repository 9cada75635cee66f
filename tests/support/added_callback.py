"""Lets `pretrain` call one more callback, such as one that kills the readout."""

from __future__ import annotations

from typing import Any

import pytest

from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback


def add_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """From now on."""
    original = run._parts

    def parts(*args: Any) -> Any:
        built = original(*args)
        built.callbacks.append(callback)
        return built

    monkeypatch.setattr(run, "_parts", parts)


class KillReadout(Callback):
    """Inputs of the readout so low that SiLU is zero for every atom; one run in nine did it."""

    def on_step(self, loop: Any, report: Any) -> None:
        if report.step == 5:
            loop.engine.train_module.potential.readout.hidden.bias.data.fill_(-1e4)
