"""Lets `pretrain` call one more callback."""

from __future__ import annotations

from typing import Any

import pytest

from evenfield.pretrain import run
from evenfield.pretrain.callbacks import Callback


def add_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """From now on, after all others."""
    original = run._parts

    def parts(*args: Any) -> Any:
        built = original(*args)
        built.callbacks.append(callback)
        return built

    monkeypatch.setattr(run, "_parts", parts)
