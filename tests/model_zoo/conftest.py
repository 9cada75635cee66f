"""A small publishable model."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_models import small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A publishable model folder for Cu and Au at two levels of theory."""
    return small_model(tmp_path / "model")
