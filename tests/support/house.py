"""What the tests of the house share: where the rooms are, and their files."""

from __future__ import annotations

from pathlib import Path


ROOT = Path(__file__).parents[2]
ROOMS = (
    "core",
    "data_pipelines",
    "model_zoo",
    "pretrain",
    "finetune",
    "simulation",
    "diagnostics",
    "cli",
    "testing",
)


def files(*rooms: str) -> list[Path]:
    """The Python files of some rooms."""
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))
