"""Errors of a training run that a user can act on."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import EvenfieldError


class TrainingError(EvenfieldError):
    """Training cannot continue. The message says what failed, the remedy what to change."""


class NoCheckpointError(EvenfieldError):
    """There is no checkpoint to resume from. `skipped` lists damaged ones with their defects."""

    def __init__(self, folder: Path, skipped: list[str]) -> None:
        damaged = f" (damaged: {', '.join(skipped)})" if skipped else ""
        super().__init__(
            f"there is no whole checkpoint to resume from{damaged}",
            remedy="name the folder of the run with out",
            file=folder,
        )
        self.skipped = skipped


class ResumeError(EvenfieldError):
    """A checkpoint does not fit the settings or data of the run that should resume from it."""
