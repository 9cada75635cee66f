"""Read the labels of a head from the structures of a file, and check them one by one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from ...core.errors import EvenfieldError
from ...data_pipelines.sources.ase_files import read_frames
from ...data_pipelines.structure import BadRecordError, Structure, check_structure
from ...model_zoo.heads.description import KINDS, MOST_STATES
from ...model_zoo.heads.head import net_charge, without_dipole
from .config import HeadConfig
from .couplings import pairs_of_states


MOST_CLASSES = 100
# units of derivative couplings, in 1/A
PER_A = {"1/A": 1.0, "1/Bohr": 1 / units.Bohr}
# e per atom; files state charges with at least three decimals
ROUNDING_OF_CHARGES = 2e-3
# relative to the largest entry; tensors by finite differences are symmetric to a few digits only
ROUNDING_OF_TENSORS = 1e-3
SKIP = "leave out structures without a label, with skip_unlabelled=true"


class LabelError(EvenfieldError):
    """A head cannot be fitted to the labels of a file."""


class NoLabelError(LabelError):
    """A structure does not have the label."""


@dataclass(frozen=True)
class LabelledFrames:
    """Labelled structures; all labels are in the unit of the head."""

    frames: list[Atoms]
    labels: list[Any]
    """For a structure: charges (N,), a dipole or vector (3,), a tensor (3, 3), a number, the index
    of a class, or the energies of states (K,). For its atoms: numbers (N,), vectors or forces
    (N, 3), or tensors (N, 3, 3), with NaN for atoms without a label."""
    classes: list[str]
    """Names of the classes; empty for other kinds of heads."""
    level_of_theory: str
    skipped: int = 0
    """Number of structures of the file that were left out, because they have no label."""
    couplings: list[np.ndarray | None] = field(default_factory=list)
    """For states: h (C, N, 3) in eV/A (`couplings.py`), or None for a structure without couplings.
    Empty if couplings are not learned."""


def read_labelled(path: Path, config: HeadConfig, known: Collection[str]) -> LabelledFrames:
    """Read all structures of a file that ASE reads, with the label that `config` names.

    known: symbols of the elements that the model has learned.

    Raises SourceError if the file cannot be read. Raises LabelError, with file and record, if a
    structure has an element that the model has not learned, or if its label is missing, has the
    wrong shape, is not finite, or breaks a rule of the kind of head; also if the structures do not
    state one level of theory.
    """
    frames = []
    labels = []
    couplings = []
    skipped = 0
    for record, atoms in enumerate(read_frames(path)):
        try:
            label = _label_of(atoms, config)
            _check_atoms(atoms, known)
            coupling = None if config.couplings is None else _couplings_of(atoms, label, config)
        except EvenfieldError as error:
            if config.skip_unlabelled and isinstance(error, NoLabelError):
                skipped += 1
                continue
            raise LabelError(
                error.message, remedy=error.remedy, file=path, record=record
            ) from error
        frames.append(atoms)
        labels.append(label)
        couplings.append(coupling)
    if not frames:
        raise LabelError(
            f"has no structure with {config.label_key!r}", remedy="check key=", file=path
        )

    level = config.level_of_theory or _stated_level(frames, path)
    if config.head == "states":
        _check_numbers_of_states(labels, path)
        if config.couplings is None:
            couplings = []
        elif all(own is None for own in couplings):
            raise LabelError(
                f"has no structure with {config.couplings!r}", remedy="check couplings=", file=path
            )
        return LabelledFrames(frames, labels, [], level, skipped, couplings)
    if config.head != "class":
        return LabelledFrames(frames, labels, [], level, skipped)

    classes = sorted(set(labels))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise LabelError(
            f"has {len(classes)} different values of {config.label_key!r}",
            remedy=f"give between 2 and {MOST_CLASSES} classes",
            file=path,
        )
    places = [classes.index(label) for label in labels]
    return LabelledFrames(frames, places, classes, level, skipped)


def _check_numbers_of_states(labels: list[np.ndarray], path: Path) -> None:
    numbers = sorted({len(energies) for energies in labels})
    if len(numbers) > 1:
        raise LabelError(
            f"has structures with {numbers[0]} and with {numbers[-1]} states",
            remedy="give all structures the same number of energies",
            file=path,
        )


def _check_atoms(atoms: Atoms, known: Collection[str]) -> None:
    check_structure(Structure.from_atoms(atoms, "", ""))
    unknown = sorted(set(atoms.symbols) - set(known))
    if unknown:
        raise BadRecordError(
            f"has {unknown[0]}, which the model has not learned", remedy="remove the record"
        )


def _label_of(atoms: Atoms, config: HeadConfig) -> Any:
    """The label of one structure, in the unit of the head; for a class, its name."""
    value = _stated(atoms, config.label_key)
    if config.head == "class":
        return _class_name(value, config.label_key)

    about = KINDS[config.head]
    shape = (3,) * about.rank
    if about.per == "atom":
        shape = (len(atoms), *shape)
    elif config.head == "states":
        shape = (np.size(value),)
    try:
        numbers = np.asarray(value, dtype=np.float64)
        if about.rank == 2 and numbers.shape == (*shape[:-2], 9):
            # extended XYZ can store a matrix as nine numbers
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
    if about.can_be_partial:
        numbers = _with_whole_atoms(numbers, config.label_key)
    elif not np.isfinite(numbers).all():
        raise LabelError(f"has {config.label_key!r} that is not finite", remedy="remove the record")
    if about.rank == 2:
        _check_symmetric(numbers, config.label_key)
    if config.head == "states":
        _check_states(numbers, config.label_key)
    numbers = numbers * config.factor
    if config.head == "charges":
        _check_net_charge(numbers, atoms)
    if config.head == "dipole":
        reason = without_dipole(atoms)
        if reason is not None:
            raise LabelError(f"cannot be used: {reason}", remedy="remove the record")
    return numbers if shape else float(numbers)


def _couplings_of(atoms: Atoms, energies: np.ndarray, config: HeadConfig) -> np.ndarray | None:
    """h (C, N, 3) in eV/A of a structure; None if it has no couplings."""
    assert config.couplings is not None
    assert config.couplings_unit is not None
    key = config.couplings
    stated = atoms.arrays.get(key)
    if stated is None:
        return None
    first, second = pairs_of_states(len(energies))
    shape = (len(atoms), 3 * len(first))
    numbers = np.asarray(stated)
    if numbers.shape != shape or numbers.dtype.kind not in "fiu":
        raise LabelError(
            f"has {key!r} of shape {numbers.shape}, not numbers of shape {shape}",
            remedy="give three numbers of each atom for each pair of states",
        )
    if not np.isfinite(numbers).all():
        raise LabelError(
            f"has {key!r} that is not finite", remedy="leave it out where two energies are equal"
        )
    derivative = (
        numbers.reshape(len(atoms), len(first), 3).swapaxes(0, 1) * PER_A[config.couplings_unit]
    )
    gaps = energies[second] - energies[first]
    found: np.ndarray = derivative * gaps[:, None, None]
    return found


def _with_whole_atoms(numbers: np.ndarray, key: str) -> np.ndarray:
    """Labels (N, ...) of atoms, set to NaN for each atom with any NaN.

    Raises NoLabelError if no atom has a complete label, and LabelError for infinite numbers.
    """
    if np.isinf(numbers).any():
        raise LabelError(f"has {key!r} that is infinite", remedy="state NaN for atoms without one")
    has_label = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not has_label.any():
        raise NoLabelError(f"has no atom with {key!r}", remedy=SKIP)
    whole = numbers.copy()
    whole[~has_label] = np.nan
    return whole


def _check_states(energies: np.ndarray, key: str) -> None:
    if not 2 <= len(energies) <= MOST_STATES:
        raise LabelError(
            f"has {key!r} of {len(energies)} energies",
            remedy=f"give those of 2 to {MOST_STATES} states",
        )
    if (np.diff(energies) < 0).any():
        raise LabelError(
            f"has {key!r} that do not rise",
            remedy="give the energies of the lowest states in order",
        )


def _check_symmetric(tensors: np.ndarray, key: str) -> None:
    """Raise LabelError if tensors (..., 3, 3) are not symmetric up to rounding."""
    skew = float(np.nanmax(np.abs(tensors - np.swapaxes(tensors, -1, -2))))
    if skew > ROUNDING_OF_TENSORS * float(np.nanmax(np.abs(tensors))):
        raise LabelError(
            f"has {key!r} that is not symmetric, by {skew:.2g}",
            remedy="give the symmetric part, (a + a.T) / 2",
        )


def _stated(atoms: Atoms, key: str) -> Any:
    """The value under a key of the results, arrays or info; raises NoLabelError without one."""
    places = [{} if atoms.calc is None else atoms.calc.results, atoms.arrays, atoms.info]
    for place in places:
        if place.get(key) is not None:
            return place[key]
    # do not suggest positions and numbers, which are not labels
    found = sorted({name for place in places for name in place} - {"numbers", "positions"})
    has = ", ".join(found) or "nothing"
    raise NoLabelError(
        f"has no {key!r}", remedy=f"set key= to one of what it has: {has}; or {SKIP}"
    )


def _class_name(value: Any, key: str) -> str:
    """The name of a class: a string, an integer or a boolean; raises LabelError otherwise."""
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
    """The level of theory that all structures state; raises LabelError if they do not."""
    stated = {atoms.info.get("level_of_theory") for atoms in frames}
    level = stated.pop()
    if stated or not isinstance(level, str):
        raise LabelError(
            "does not state one level of theory",
            remedy="say how the labels were made, as in level_of_theory=PBE",
            file=path,
        )
    return level
