"""Labels minus physics, and what a data set says of the physics that was subtracted.

A data set of such labels states the settings and their hash in dataset_info.json under `physics`. A
model that is trained on it takes both into its config, and adds the physics again.
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


PHYSICS = "physics"  # in dataset_info.json


def without_physics(structure: Structure, physics: Physics) -> Structure:
    """The structure with its labels minus the physics; absent labels stay absent.

    Raises PhysicsError and GeometryError for a structure that the physics does not fit.
    """
    if not structure.labels:
        return structure
    known = physics.of(structure.atomic_numbers, structure.positions, structure.cell, structure.pbc)
    labels: dict[str, Any] = {}
    if structure.energy is not None:
        labels["energy"] = structure.energy - known.energy
    if structure.forces is not None:
        labels["forces"] = structure.forces - known.forces
    # of a structure without three periodic directions there is none to subtract
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
    """The structures with their labels minus the physics, if there is any.

    Raises PhysicsError and GeometryError, which name the structure.
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
    """What is wrong with a net charge that charges would not equilibrate to; None if nothing is.

    stated: `info["charge"]` of the structure, in e; None where it states none.
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
    """What dataset_info.json says of the physics that was subtracted from the labels."""
    return {"config": config.model_dump(mode="json"), "sha256": config.sha256}


def physics_of(info: Mapping[str, Any], folder: Path | str) -> PhysicsConfig | None:
    """The physics that was subtracted from the labels of a data set; None for labels as they are.

    info: the content of its dataset_info.json.

    Raises PhysicsError for physics that this version does not know.
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
    """The physics of all of several data sets.

    Raises PhysicsError, which names two of them, where they differ: no model could add both.
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
    """Structures of the data set `data` with labels as a model with this physics has learned them.

    Labels of the whole become those minus the physics. Raises PhysicsError at once for labels minus
    other physics.
    """
    stated = physics_of(read_info(data), data)
    if stated is None:
        return each_without_physics(structures, physics)
    refuse_other_physics(stated, physics, data)
    return iter(structures)


def refuse_other_physics(
    data: PhysicsConfig | None, model: PhysicsConfig | None, place: Path | str | None
) -> None:
    """Raise PhysicsError unless data and model have the same physics; `place` names the data."""
    if data == model:
        return
    raise PhysicsError(
        f"has labels minus {described(data)}, and the model adds {described(model)}",
        file=place,
        remedy="convert the source again with the settings of physics of the model, which its "
        "config.json has, or name another model",
    )
