"""Notes on leaks: structures that a fine-tuning both learns from and is judged on."""

from __future__ import annotations

from itertools import permutations

from ..core.addresses import local_path
from ..data_pipelines.checks.leaks import leaks_between
from ..model_zoo.package.record import ModelRecord, notes_on_known_sources
from .target import Target


SEPARATE = "leave them out of one of the two"


def notes_on_leaks(target: Target, record: ModelRecord, replay: str | None) -> list[str]:
    """One line for each way in which held-out structures may already be known.

    replay: the data set of the replay, or None.
    """
    notes = []
    # replayed structures are learned too, and the replay data have their own held-out structures
    if replay is not None and target.folder is not None:
        folder = local_path(replay)
        if folder.resolve() != target.folder.resolve():
            notes += leaks_between(permutations([target.folder, folder], 2), remedy=SEPARATE)

    return notes + notes_on_known_sources(record, [target.source.sha256])
