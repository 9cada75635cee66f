"""Checks of the data before a long run: training labels, and structures to test on."""

from __future__ import annotations

from typing import Any

from ..core.errors import EvenfieldError
from ..core.level_names import likely_meant
from ..data_pipelines.checks.leaks import leaks_among
from ..data_pipelines.stream.collection import Collection
from ..model_zoo.evaluation.coverage import Coverage
from .checkpoints.run_data import trained_levels
from .config import PretrainConfig


def check_data(config: PretrainConfig, data: Collection) -> None:
    """Raise EvenfieldError for data that cannot give a usable model, or cannot test it."""
    levels = trained_levels(data)
    without_energies = [level for level, row in levels.items() if not row["e0"]]
    if without_energies:
        # Forces alone do not determine energies. The head would have no E0 for any element, and a
        # model refuses to predict elements without E0.
        raise EvenfieldError(
            f"has no training energy at the level of theory {', '.join(without_energies)}",
            remedy="convert it with the column of its energies (see columns.energy), or without "
            "the structures of that level",
            file=str(data),
        )

    if config.default_level is not None and config.default_level not in levels:
        meant = likely_meant(config.default_level, levels)
        question = f"did you mean {meant!r}? " if meant else ""
        raise EvenfieldError(
            f"default_level={config.default_level}: no training structure has this level of theory",
            remedy=f"{question}choose one of {', '.join(levels)}",
        )
    physics = data.physics
    if config.model.charges and physics is not None and physics.coulomb is not None:
        raise EvenfieldError(
            "has labels minus the energy of charges, and model.charges=true would learn it again",
            remedy="leave model.charges out, or convert the data without physics.coulomb",
            file=str(data),
        )
    unknown = [level for level in config.level_sharing.levels if level not in levels]
    if unknown:
        raise EvenfieldError(
            f"level_sharing.levels: no training structure is at {', '.join(unknown)}",
            remedy=f"name some of {', '.join(levels)}",
        )
    if config.adaptive.rate > 0 and not can_judge(data, "valid"):
        raise EvenfieldError(
            "holds no validation structure for adaptive.rate",
            remedy="convert it with valid_share above 0",
            file=str(data),
        )
    # a file that is missing or damaged stops the run before anything is built
    config.adaptive.reference_errors()
    if not can_judge(data, "test") and not can_judge(data, "valid"):
        at = ""
        if data.num_structures("test") + data.num_structures("valid"):
            at = (
                f" at a level of theory that it trains on ({', '.join(levels)}), of elements that "
                "this level learns"
            )
        raise EvenfieldError(
            f"holds no structure to test on{at}",
            remedy="convert it with test_share above 0",
            file=str(data),
        )


def held_out_split(data: Collection) -> str:
    """The split on which a finished model is evaluated: test, or else valid."""
    return "test" if can_judge(data, "test") else "valid"


def can_judge(data: Collection, split: str) -> bool:
    """Whether a split has a structure at a trained level that contains only trained elements."""
    learned = counts_of_levels(data.census(), list(trained_levels(data)))
    # usually the first structure already qualifies
    return any(True for _ in Coverage(learned).answerable(data.structures(split)))


def counts_of_levels(census: dict[str, Any], levels: list[str]) -> dict[str, dict[str, int]]:
    """Numbers of training structures by level of theory and symbol; all are at least 1."""
    return {level: census["levels_of_theory"][level]["train_elements"] for level in levels}


def notes_on_data(data: Collection) -> list[str]:
    """Notes on the data that a user should see before the first step."""
    trained = trained_levels(data)
    notes = []
    for level, row in data.census()["levels_of_theory"].items():
        counts = row["structures"]
        if level in trained or not any(counts.values()):
            continue
        splits = [f"{count} of {split}" for split, count in counts.items() if count]
        notes.append(
            f"level of theory {level} has no training structure: it gets no head, and its "
            f"structures ({', '.join(splits)}) are left out of the evaluation"
        )
    return notes + leaks_among(data.folders)
