"""Any file that ASE reads -> canonical structures, as a config says; every error names file, record and mend."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ase.io
import numpy as np
from ase import Atoms
from pydantic import Field, model_validator

from .schema import SPLITS, BadRecordError, Structure, check_elements, check_structure, full_stress
from .settings import Settings
from .units import unit_factor


Label = Literal["energy", "forces", "stress"]
LABELS: tuple[Label, ...] = ("energy", "forces", "stress")
LABEL_SIZES: dict[Label, tuple[int, ...]] = {"energy": (1,), "stress": (6, 9)}


class SourceConfig(Settings):
    """How a file's columns become canonical fields.

    Without `columns`, the labels are what ASE itself recognises (its units are ours).  A label taken from a
    named column has no unit that a program could know, so `units` must state one.
    """

    columns: dict[str, str] = Field(default={}, description="field -> info or array key of the file")
    units: dict[Label, str] = Field(default={}, description="unit of each label named in columns")
    masks: dict[Label, str] = Field(default={}, description="label -> info key; a true value drops the label")
    level_of_theory: str | None = Field(default=None, description="tag for every structure of the file")
    split_by: Literal["file", "group", "structure"] = Field(
        default="file",
        description="the file's own split where it states one, else by group; or always by group; or each "
        "structure on its own, which lets near duplicates stand on both sides",
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        fields = {*LABELS, "level_of_theory", "structure_id", "group", "split"}
        for field in self.columns:
            if field not in fields:
                raise ValueError(f"columns.{field} is not a field: use one of {', '.join(sorted(fields))}")
        for label in LABELS:
            if label in self.columns and label not in self.units:
                raise ValueError(
                    f"columns.{label}={self.columns[label]} has no unit: add units.{label}=... "
                    "(for example eV, eV/A, eV/A^3)"
                )
            if label in self.units and label not in self.columns:
                raise ValueError(
                    f"units.{label}={self.units[label]} belongs to no column: add columns.{label}=... "
                    f"(for example columns.{label}={label})"
                )
            if label in self.units:
                unit_factor(label, self.units[label])
        return self


def read_structures(
    path: Path | str, source: SourceConfig, rejected: list[dict[str, str]] | None = None
) -> Iterator[Structure]:
    """Yield the checked canonical structures of a file.

    A bad record raises BadRecordError; when a list `rejected` is given it is noted there instead and the
    reading goes on.
    """
    path = Path(path)
    index = -1
    for index, atoms in enumerate(_iread(path)):
        try:
            structure = structure_from_atoms(atoms, source, default_id=f"{path.name.split('.')[0]}-{index}")
            check_structure(structure)
        except BadRecordError as error:
            message = f"{path}: record {index} {error}"
            if rejected is None:
                raise BadRecordError(message) from None
            rejected.append({"file": str(path), "record": str(index), "reason": str(error)})
            continue
        yield structure
    if index < 0:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")


def structure_from_atoms(atoms: Atoms, source: SourceConfig, default_id: str) -> Structure:
    """One ase.Atoms with its labels as a canonical structure; of its numbers only the elements are checked."""
    check_elements(atoms.numbers)
    labels = {label: _label(atoms, source, label) for label in LABELS}
    level = source.level_of_theory or _text(atoms, source, "level_of_theory")
    if level is None:
        raise BadRecordError(
            "states no level of theory: add level_of_theory=NAME (for example PBE), or columns.level_of_theory=KEY"
        )
    split = _text(atoms, source, "split") if source.split_by == "file" else None
    if split is not None and split not in SPLITS:
        raise BadRecordError(f"has split '{split}': use one of {', '.join(SPLITS)}, or split_by=group")
    return Structure(
        atomic_numbers=atoms.numbers.astype(np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        level_of_theory=level,
        structure_id=_text(atoms, source, "structure_id") or default_id,
        group=_text(atoms, source, "group") or atoms.get_chemical_formula(empirical=True),
        split=split,
        energy=None if labels["energy"] is None else float(labels["energy"].item()),
        forces=labels["forces"],
        stress=None if labels["stress"] is None else full_stress(labels["stress"]),
    )


def _label(atoms: Atoms, source: SourceConfig, label: Label) -> Any:
    if label in source.masks and _is_true(atoms.info.get(source.masks[label])):
        return None
    key, factor = source.columns.get(label), 1.0
    value = _results(atoms).get(key or label)  # ASE moves the columns that it recognises there
    if key is not None:
        own = atoms.arrays if label == "forces" else atoms.info
        value, factor = own.get(key, value), unit_factor(label, source.units[label])
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64) * factor
    except (TypeError, ValueError):
        raise BadRecordError(f"has {label} {value!r}, which is not a number: correct or remove it") from None
    if array.size not in LABEL_SIZES.get(label, (array.size,)):
        sizes = " or ".join(map(str, LABEL_SIZES[label]))
        raise BadRecordError(f"has {label} of shape {array.shape}: give {sizes} numbers")
    return array


def _results(atoms: Atoms) -> dict[str, Any]:
    return atoms.calc.results if atoms.calc is not None else {}


def _text(atoms: Atoms, source: SourceConfig, field: str) -> str | None:
    key = source.columns.get(field, field)
    value = atoms.info.get(key)
    if value is None and field in source.columns:
        raise BadRecordError(f"has no column '{key}' (columns.{field}); it has: {', '.join(sorted(atoms.info))}")
    return None if value is None else str(value)


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "t", "1", "1.0")


def _iread(path: Path) -> Iterator[Atoms]:
    """ase.io.iread with errors that name the file and the record."""
    if not path.is_file():
        raise BadRecordError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")
    index = -1
    try:
        for index, atoms in enumerate(_frames(path)):  # noqa: B007 - the error below names it
            yield atoms
    except BadRecordError as error:
        raise BadRecordError(f"{path}: after record {index} {error}") from None
    except Exception as error:  # ASE's readers raise anything on a broken file
        raise BadRecordError(
            f"{path}: record {index + 1} cannot be read: {type(error).__name__}: {error}; "
            "the file is cut off there or not in a format that ASE reads"
        ) from None


def _frames(path: Path) -> Iterator[Atoms]:
    """ase.io.iread; gzipped xyz is unpacked first, as ASE seeks in it (quadratic time)."""
    if not re.search(r"\.(ext)?xyz(\.gz)?$", path.name):
        yield from ase.io.iread(path, ":")
        return
    packed = path.suffix == ".gz"
    with io.StringIO(gzip.decompress(path.read_bytes()).decode()) if packed else path.open() as file:
        yield from ase.io.iread(file, ":", format="extxyz")
        if file.read().strip():
            raise BadRecordError("stands a blank line, where ASE stops, and then more text: remove the line")


def check_columns_exist(path: Path | str, source: SourceConfig) -> None:
    """Raise BadRecordError when a label column named in the config is absent from the first 100 records."""
    missing = {label: source.columns[label] for label in LABELS if label in source.columns}
    seen: set[str] = set()
    for index, atoms in enumerate(_iread(Path(path))):
        seen |= set(atoms.info) | set(atoms.arrays) | set(_results(atoms))
        missing = {label: key for label, key in missing.items() if key not in seen}
        if not missing or index >= 100:
            break
    for label, key in missing.items():
        known = ", ".join(sorted(seen - {"numbers", "positions"}))
        raise BadRecordError(f"{path}: no column '{key}' for columns.{label}; the file has: {known}")
