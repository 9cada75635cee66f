"""Subtract analytic physics from labels, and keep track of what was subtracted.

A data set with such labels stores the physics settings and their hash in dataset_info.json, under
`physics`. A model trained on it copies both into its config and adds the physics to its
predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..neighbours import GeometryError
from ..store.shards import CONVERT_AFRESH, read_info
from ..structure import Structure
from .config import PhysicsConfig, described
from .coulomb import NEUTRAL
from .errors import PhysicsError
from .physics import Physics


PHYSICS = "physics"  # key in dataset_info.json


def without_physics(structure: Structure, physics: Physics) -> Structure:
    """A copy of the structure with the physics subtracted from its labels.

    Absent labels stay absent. A stress is removed unless all three directions are periodic. Raises
    PhysicsError if the physics does not apply to the structure or the result is not finite, and
    GeometryError if the structure cannot be searched for neighbours.
    """
    if not structure.labels:
        return structure
    known = physics.of(structure.atomic_numbers, structure.positions, structure.cell, structure.pbc)
    labels: dict[str, Any] = {}
    if structure.energy is not None:
        labels["energy"] = structure.energy - known.energy
    if structure.forces is not None:
        labels["forces"] = structure.forces - known.forces
    # unless all directions are periodic, the physics has no stress to subtract
    if structure.stress is not None:
        labels["stress"] = None if known.stress is None else structure.stress - known.stress
    left = structure.with_labels(**labels)
    for name, value in left.labels.items():
        if not np.isfinite(value).all():
            raise PhysicsError(
                f"has {name} of physics that is not finite",
                remedy="remove atoms that occur twice, and move others apart",
            )
    return left


def each_without_physics(
    structures: Iterable[Structure], config: PhysicsConfig | None
) -> Iterator[Structure]:
    """Yield the structures with the physics, if any, subtracted from their labels.

    Raises PhysicsError or GeometryError as `without_physics` does, with the id of the structure.
    """
    physics = None if config is None else Physics(config)
    for structure in structures:
        if physics is None:
            yield structure
            continue
        try:
            yield without_physics(structure, physics)
        except (PhysicsError, GeometryError) as error:
            error.record = structure.structure_id
            raise


def other_charge(stated: Any, config: PhysicsConfig | None) -> str | None:
    """A message if a structure's net charge differs from `coulomb.net_charge`; None otherwise.

    Only equilibrated charges can differ.

    stated: `info["charge"]` of the structure, in e; None if it states none.
    """
    coulomb = None if config is None else config.coulomb
    if stated is None or coulomb is None or not coulomb.equilibrates:
        return None
    try:
        is_same = abs(float(stated) - coulomb.net_charge) < NEUTRAL
    except (TypeError, ValueError):
        is_same = False
    if is_same:
        return None
    return (
        f"has the net charge {str(stated)[:40]}, and the physics has "
        f"coulomb.net_charge={coulomb.net_charge:g} for all structures"
    )


def to_state(config: PhysicsConfig) -> dict[str, Any]:
    """The entry of dataset_info.json for the physics that was subtracted from the labels."""
    return {"config": config.model_dump(mode="json"), "sha256": config.sha256}


def physics_of(info: Mapping[str, Any], folder: Path | str) -> PhysicsConfig | None:
    """The physics that was subtracted from the labels of a data set; None if none was.

    info: content of its dataset_info.json.
    folder: the data set, for messages.

    Raises PhysicsError for settings that this version does not know.
    """
    stated = info.get(PHYSICS)
    if stated is None:
        return None
    try:
        config = PhysicsConfig.model_validate(stated["config"])
        is_same = config.sha256 == stated["sha256"]
    except (ValidationError, KeyError, TypeError):
        is_same = False
    if not is_same:
        raise PhysicsError(
            "states physics that this version of evenfield does not know",
            file=folder,
            remedy=f"use the version that converted it, or {CONVERT_AFRESH}",
        )
    return config


def common_physics(
    folders: Sequence[Path], infos: Sequence[Mapping[str, Any]]
) -> PhysicsConfig | None:
    """The physics that several data sets have in common; None if none was subtracted.

    Raises PhysicsError, which names two data sets, if their physics differ: a model can add only
    one.
    """
    found = [physics_of(info, folder) for folder, info in zip(folders, infos, strict=True)]
    for folder, own in zip(folders, found, strict=True):
        if own != found[0]:
            raise PhysicsError(
                f"has labels minus {described(own)}, and {folders[0]} minus {described(found[0])}",
                file=folder,
                remedy="convert both sources with the same settings of physics",
            )
    return found[0] if found else None


def as_learned(
    structures: Iterable[Structure], data: Path | str, physics: PhysicsConfig | None
) -> Iterator[Structure]:
    """Structures of the data set `data`, with labels as a model with `physics` learns them.

    If the data set has total labels, the physics is subtracted from them. Raises PhysicsError
    immediately if other physics was already subtracted.
    """
    stated = physics_of(read_info(data), data)
    if stated is None:
        return each_without_physics(structures, physics)
    refuse_other_physics(stated, physics, data)
    return iter(structures)


def refuse_other_physics(
    data: PhysicsConfig | None, model: PhysicsConfig | None, place: Path | str | None
) -> None:
    """Raise PhysicsError unless data and model have the same physics.

    place: the data, for the message.
    """
    if data == model:
        return
    raise PhysicsError(
        f"has labels minus {described(data)}, and the model adds {described(model)}",
        file=place,
        remedy="convert the source again with the settings of physics of the model, which its "
        "config.json has, or name another model",
    )
