"""The labels of a head, read from the structures of a file and checked one by one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ...core.errors import EvenfieldError
from ...data_pipelines.sources.ase_files import read_frames
from ...data_pipelines.structure import BadRecordError, Structure, check_structure
from ...model_zoo.heads.description import KINDS
from ...model_zoo.heads.head import net_charge, without_dipole
from .config import HeadConfig


MOST_CLASSES = 100
# e for each atom; files round charges to three digits or more
ROUNDING_OF_CHARGES = 2e-3
# relative to the largest entry; finite differences are symmetric to a few digits
ROUNDING_OF_TENSORS = 1e-3


class LabelError(EvenfieldError):
    """A file whose labels a head cannot be fitted to."""


@dataclass(frozen=True)
class LabelledFrames:
    """S structures with one label each, in the unit of the head."""

    frames: list[Atoms]
    labels: list[Any]
    """Charges (N,), a dipole or vector (3,), a tensor (3, 3), a number, or the place of a class."""
    classes: list[str]
    level_of_theory: str


def read_labelled(path: Path, config: HeadConfig, known: Collection[str]) -> LabelledFrames:
    """All structures of a file that ASE reads, with the label that `config` names.

    known: symbols that the model has learned.

    Raises SourceError for a file that cannot be read, and LabelError, with file and record, for a
    structure that has no such label, one of another shape, one that is not finite, an element that
    the model has not learned, or none of what the kind of head needs.
    """
    frames = read_frames(path)
    labels = []
    for record, atoms in enumerate(frames):
        try:
            _check_atoms(atoms, known)
            labels.append(_label_of(atoms, config))
        except EvenfieldError as error:
            raise LabelError(
                error.message, remedy=error.remedy, file=path, record=record
            ) from error
    level = config.level_of_theory or _stated_level(frames, path)
    if config.head != "class":
        return LabelledFrames(frames, labels, [], level)

    classes = sorted(set(labels))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise LabelError(
            f"has {len(classes)} different values of {config.label_key!r}",
            remedy=f"give between 2 and {MOST_CLASSES} classes",
            file=path,
        )
    places = [classes.index(label) for label in labels]
    return LabelledFrames(frames, places, classes, level)


def _check_atoms(atoms: Atoms, known: Collection[str]) -> None:
    check_structure(Structure.from_atoms(atoms, "", ""))
    unknown = sorted(set(atoms.symbols) - set(known))
    if unknown:
        raise BadRecordError(
            f"has {unknown[0]}, which the model has not learned", remedy="remove the record"
        )


def _label_of(atoms: Atoms, config: HeadConfig) -> Any:
    """The label of one structure, in the unit of the head; a class by its name."""
    value = _stated(atoms, config.label_key)
    if config.head == "class":
        return _class_name(value, config.label_key)

    shape = (len(atoms),) if config.head == "charges" else (3,) * KINDS[config.head].rank
    try:
        numbers = np.asarray(value, dtype=np.float64)
        if len(shape) == 2 and numbers.shape == (9,):
            # as extended XYZ can hold a matrix
            numbers = numbers.reshape(shape)
    except (TypeError, ValueError):
        raise LabelError(
            f"has {config.label_key!r} = {str(value)[:40]!r}, which is no number",
            remedy="give numbers, or learn names with head=class",
        ) from None
    if numbers.shape != shape:
        raise LabelError(
            f"has {config.label_key!r} of shape {numbers.shape}, not {shape}",
            remedy=f"head={config.head} needs that shape",
        )
    if not np.isfinite(numbers).all():
        raise LabelError(f"has {config.label_key!r} that is not finite", remedy="remove the record")
    if len(shape) == 2:
        _check_symmetric(numbers, config.label_key)
    numbers = numbers * config.factor
    if config.head == "charges":
        _check_net_charge(numbers, atoms)
    if config.head == "dipole":
        reason = without_dipole(atoms)
        if reason is not None:
            raise LabelError(f"cannot be used: {reason}", remedy="remove the record")
    return numbers if shape else float(numbers)


def _check_symmetric(tensor: np.ndarray, key: str) -> None:
    skew = float(np.abs(tensor - tensor.T).max())
    if skew > ROUNDING_OF_TENSORS * float(np.abs(tensor).max()):
        raise LabelError(
            f"has {key!r} that is not symmetric, by {skew:.2g}",
            remedy="give the symmetric part, (a + a.T) / 2",
        )


def _stated(atoms: Atoms, key: str) -> Any:
    """The value that a structure has under a key."""
    places = [{} if atoms.calc is None else atoms.calc.results, atoms.arrays, atoms.info]
    for place in places:
        if place.get(key) is not None:
            return place[key]
    # positions and numbers are no labels
    found = sorted({name for place in places for name in place} - {"numbers", "positions"})
    has = ", ".join(found) or "nothing"
    raise LabelError(f"has no {key!r}", remedy=f"set key= to one of what it has: {has}")


def _class_name(value: Any, key: str) -> str:
    """Names, whole numbers and truth values are classes; other numbers are not."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return str(value)
    raise LabelError(
        f"has {key!r} = {str(value)[:40]!r}, which is no name of a class",
        remedy="give a word or a whole number, or learn the number with head=scalar",
    )


def _check_net_charge(charges: np.ndarray, atoms: Atoms) -> None:
    stated = net_charge(atoms)
    total = float(charges.sum())
    if abs(total - stated) > ROUNDING_OF_CHARGES * len(atoms):
        raise LabelError(
            f"has charges that add up to {total:.4g} e, and a net charge of {stated:g} e",
            remedy="state the net charge as info['charge'], or check the unit",
        )


def _stated_level(frames: Sequence[Atoms], path: Path) -> str:
    """The level of theory that all structures state."""
    stated = {atoms.info.get("level_of_theory") for atoms in frames}
    level = stated.pop()
    if stated or not isinstance(level, str):
        raise LabelError(
            "does not state one level of theory",
            remedy="say how the labels were made, as in level_of_theory=PBE",
            file=path,
        )
    return level
