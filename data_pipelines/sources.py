"""Any file that ASE reads -> canonical structures, as a config says; every error names file, record and mend."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
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


@dataclass(frozen=True)
class Part:
    """An independent piece of a source: records [first, last) of a file, to its end when last is None."""

    name: str
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class Rejected:
    """A bad record: where it stands and why it must not enter the pipeline."""

    file: str
    record: int
    reason: str


def list_parts(source: str, config: SourceConfig, records_per_part: int = 4096) -> list[Part]:
    """A source cut into parts in a stable order; a file whose records cannot be told apart is one part."""
    starts = _record_starts(source) if _is_xyz(source) and Path(source).is_file() else None
    if starts is None or len(starts) <= records_per_part:
        return [Part(source)]
    firsts = range(0, len(starts), records_per_part)
    return [Part(source, first, min(first + records_per_part, len(starts))) for first in firsts]


def read_part(part: Part, config: SourceConfig) -> Iterator[Structure | Rejected]:
    """Yield every record of a part, as a checked structure or as Rejected.

    Raises BadRecordError for a file that cannot be read on.
    """
    path, index = Path(part.name), part.first - 1
    for index, atoms in enumerate(_iread(path, part.first, part.last), part.first):
        try:
            structure = structure_from_atoms(atoms, config, default_id=f"{path.name.split('.')[0]}-{index}")
            check_structure(structure)
        except BadRecordError as error:
            yield Rejected(part.name, index, str(error))
            continue
        yield structure
    if index < part.first:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")


def source_fingerprint(source: str, config: SourceConfig) -> str:
    """A hash that changes when the source does."""
    _check_readable(Path(source))
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_structures(path: Path | str, source: SourceConfig) -> Iterator[Structure]:
    """Yield the checked canonical structures of a file; a bad record raises BadRecordError."""
    for record in read_part(Part(str(path)), source):
        if isinstance(record, Rejected):
            raise BadRecordError(f"{record.file}: record {record.record} {record.reason}")
        yield record


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


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise BadRecordError(f"{path}: no such file")
    try:
        empty = not path.open("rb").read(1)
    except OSError as error:
        raise BadRecordError(f"{path}: cannot be opened ({error.strerror}): make it readable for you") from None
    if empty:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")


def _iread(path: Path, first: int = 0, last: int | None = None) -> Iterator[Atoms]:
    """ase.io.iread with errors that name the file and the record."""
    _check_readable(path)
    index = first - 1
    try:
        for index, atoms in enumerate(_frames(path, first, last), first):  # noqa: B007 - the error below names it
            yield atoms
    except BadRecordError as error:
        raise BadRecordError(f"{path}: after record {index} {error}") from None
    except Exception as error:  # ASE's readers raise anything on a broken file
        raise BadRecordError(
            f"{path}: record {index + 1} cannot be read: {type(error).__name__}: {error}; "
            "the file is cut off there or not in a format that ASE reads"
        ) from None


def _frames(path: Path, first: int, last: int | None) -> Iterator[Atoms]:
    """ase.io.iread; xyz is opened at the first record, as ASE seeks in it (quadratic time if gzipped)."""
    if not _is_xyz(path):
        yield from ase.io.iread(path, f"{first}:{'' if last is None else last}")
        return
    text = _xyz_text(path, first, last)
    for count in re.findall(r"^[ \t]*([\d_]{7,})[ \t\r]*$", text, re.MULTILINE):
        if int(count) > len(text):  # ASE would look for that many lines, for hours
            raise ValueError(f"a line announces {count} atoms, more than the file has letters")
    with io.StringIO(text) as file:
        yield from ase.io.iread(file, ":", format="extxyz")
        if file.read().strip():
            raise BadRecordError("stands a blank line, where ASE stops, and then more text: remove the line")


def _is_xyz(path: Path | str) -> bool:
    return re.search(r"\.(ext)?xyz(\.gz)?$", str(path)) is not None


def _open_xyz(path: Path | str) -> Any:
    return gzip.open(path, "rb") if str(path).endswith(".gz") else Path(path).open("rb")


def _xyz_text(path: Path, first: int, last: int | None) -> str:
    start, stop = 0, None
    if first or last is not None:
        starts = _record_starts(str(path))
        assert starts is not None  # list_parts found them
        start, stop = starts[first], starts[last] if last is not None and last < len(starts) else None
    with _open_xyz(path) as file:
        file.seek(start)
        return file.read(-1 if stop is None else stop - start).decode()


@lru_cache(maxsize=2)
def _record_starts(path: str) -> list[int] | None:
    """Byte offset of each record of an xyz file, or None where the text is not a plain row of whole records."""
    starts, offset = [], 0
    try:
        with _open_xyz(path) as file:
            while line := file.readline():
                starts.append(offset)
                rows = list(islice(file, int(line) + 1))
                if len(rows) <= int(line):
                    return None
                offset += len(line) + sum(map(len, rows))
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    return starts


def check_columns_exist(path: Path | str, source: SourceConfig) -> None:
    """Raise BadRecordError when a label or mask column named in the config is in no record of the file."""
    missing = {f"columns.{label}": source.columns[label] for label in LABELS if label in source.columns}
    missing |= {f"masks.{label}": key for label, key in source.masks.items()}
    seen: set[str] = set()
    for atoms in _iread(Path(path)):  # most files have them in the first record, some late
        seen |= set(atoms.info) | set(atoms.arrays) | set(_results(atoms))
        missing = {field: key for field, key in missing.items() if key not in seen}
        if not missing:
            break
    for field, key in missing.items():
        known = ", ".join(sorted(seen - {"numbers", "positions"}))
        raise BadRecordError(f"{path}: no column '{key}' for {field}; the file has: {known}")
