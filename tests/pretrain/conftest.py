"""A tiny run on the session's data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evenfield.pretrain.config import PretrainConfig

from optimizer_steps import MODEL


@pytest.fixture
def run_config(data_set, tmp_path) -> Callable[..., PretrainConfig]:
    """A config of 12 steps in epochs of 6, that writes into `tmp_path`/`name`."""

    def build(name: str = "run", **changes: Any) -> PretrainConfig:
        settings = {
            "data": str(data_set),
            "out": str(tmp_path / name),
            "max_steps": 12,
            "evaluate_every": 1000,
            "model": MODEL,
            "stream": {"edge_budget": 1500, "window_blocks": 3},
            "schedule": {"warmup_steps": 3},
        }
        return PretrainConfig.model_validate(settings | changes)

    return build
