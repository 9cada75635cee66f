"""A source of any kind -> checked canonical structures, as a config says; every error names file, record and mend.

Kinds: files that ASE reads, `ase.db`, ASE-LMDB (`.aselmdb`), Parquet; one file, a folder, a glob, a URL (file://,
s3:// and what else fsspec opens) or a data set of the hub, owner/name[@revision].  A source falls into parts that
can be read in any order and in any process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ..structure import BadRecordError, Structure, check_structure
from .ase_files import (
    DATABASES,
    iter_file,
    iter_rows,
    record_from_atoms,
    refuse_geometry_columns,
    row_ids,
)
from .config import LABELS, Part, Rejected, SourceConfig
from .extended_xyz import is_xyz, record_starts
from .locations import fingerprint, is_url, list_files, local_file, open_binary, plain_path
from .records import Record, is_wanted, structure_from_record
from .tables import iter_table, row_ranges


__all__ = [
    "Part",
    "Rejected",
    "SourceConfig",
    "check_columns_exist",
    "list_parts",
    "read_part",
    "read_structures",
    "sample_parts",
    "source_fingerprint",
    "structure_from_atoms",
]

SPLIT = "(?P<split>train|valid|val|validation|test)"
# as our own shards and those of the hub are named: the file, or its folder, states the split of all its rows
SHARD_NAME = re.compile(
    rf"(.*/)?({SPLIT}-\d{{5}}[^/]*|{SPLIT.replace('split', 'folder')}/\d{{4,5}}\.parquet)"
)


def list_parts(source: str, config: SourceConfig, records_per_part: int = 4096) -> list[Part]:
    """The parts of a source in a stable order; Parquet is cut at row groups, a local database or xyz at records.

    Other files, and remote databases, which have to be copied here, are one part each.
    """
    parts = [
        part
        for name in list_files(source, config.hub_config)
        for part in _parts_of_file(name, records_per_part)
    ]
    if not parts:
        raise BadRecordError(f"{source}: holds no structures: the file is empty, write it again")
    return parts


def _parts_of_file(name: str, records_per_part: int = 4096) -> list[Part]:
    kind = Path(name).suffix
    if kind == ".parquet":
        with open_binary(name) as file:
            return [Part(name, *rows) for rows in row_ranges(file, name, records_per_part)]
    if kind in DATABASES and not is_url(name):
        ids = row_ids(plain_path(name))
        chunks = [ids[k : k + records_per_part] for k in range(0, len(ids), records_per_part)]
        return [Part(name, chunk[0], chunk[-1] + 1) for chunk in chunks]
    if is_xyz(name) and not is_url(name) and (starts := record_starts(str(plain_path(name)))):
        firsts = range(0, len(starts), records_per_part)
        return [Part(name, first, min(first + records_per_part, len(starts))) for first in firsts]
    return [Part(name)]


def sample_parts(source: str, config: SourceConfig, count: int) -> list[Part]:
    """At most `count` parts spread over the source, of at most `count` files: others are not even opened."""
    parts = [
        part
        for name in _spread(list_files(source, config.hub_config), count)
        for part in _parts_of_file(name)
    ]
    return _spread(parts, count)


def _spread(items: list[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[k * (len(items) - 1) // max(count - 1, 1)] for k in range(count)]


def read_part(part: Part, config: SourceConfig) -> Iterator[Structure | Rejected | None]:
    """The structures of one part; a bad record comes as Rejected, one that does not pass the row filters as None.

    An unreadable file, or one that lacks a column which the config names, raises BadRecordError.
    """
    stem, split = _stem_and_split(part.name)
    for index, record in _records(part, config):
        try:
            if isinstance(record, BadRecordError):
                raise record
            if not is_wanted(record, config):
                yield None
                continue
            structure = structure_from_record(record, config, f"{stem}-{index}", split)
            check_structure(structure)
        except BadRecordError as error:
            yield Rejected(part.name, index, str(error))
        else:
            yield structure


def _stem_and_split(name: str) -> tuple[str, str | None]:
    """What default ids begin with, and the split that a file's name states."""
    path = Path(name)
    stem, match = path.name.split(".")[0], SHARD_NAME.fullmatch(name)
    if stem.isdigit():  # a number alone is found in every folder
        stem = f"{path.parent.name}-{stem}"
    return stem, (match["split"] or match["folder"]) if match else None


def _records(part: Part, config: SourceConfig) -> Iterator[tuple[int, Record | BadRecordError]]:
    kind = Path(part.name).suffix
    if kind == ".parquet":
        with open_binary(part.name) as file:
            yield from iter_table(file, part.name, config, part.first, part.last)
        return
    refuse_geometry_columns(part.name, config)
    with local_file(part.name) as path:
        if kind in DATABASES:
            yield from iter_rows(path, part.first, part.last)
        else:
            yield from iter_file(path, part.first, part.last)


def read_structures(
    path: Path | str, source: SourceConfig, rejected: list[dict[str, str]] | None = None
) -> Iterator[Structure]:
    """Yield the checked canonical structures of a source, part after part.

    A bad record raises BadRecordError; when a list `rejected` is given it is noted there instead and the
    reading goes on.
    """
    for part in list_parts(str(path), source):
        for found in read_part(part, source):
            if isinstance(found, Structure):
                yield found
            elif found is None:
                continue
            elif rejected is None:
                raise BadRecordError(f"{found.file}: record {found.record} {found.reason}")
            else:
                rejected.append(
                    {"file": found.file, "record": str(found.record), "reason": found.reason}
                )


def source_fingerprint(source: str, config: SourceConfig) -> str:
    """sha256 of what a source holds: of the bytes of local files; of etag, commit and size of remote ones."""
    return fingerprint(list_files(source, config.hub_config))


def structure_from_atoms(atoms: Atoms, source: SourceConfig, default_id: str) -> Structure:
    """One ase.Atoms with its labels as a canonical structure; of its numbers only the elements are checked."""
    return structure_from_record(record_from_atoms(atoms), source, default_id)


def check_columns_exist(path: Path | str, source: SourceConfig) -> None:
    """Raise BadRecordError when a label or mask column named in the config is in no record of the first part.

    Parquet has a schema, which is checked whenever a part of it is read.
    """
    part = (sample_parts(str(path), source, 1) or list_parts(str(path), source))[0]
    missing = {
        f"columns.{label}": source.columns[label] for label in LABELS if label in source.columns
    }
    missing |= {f"masks.{label}": key for label, key in source.masks.items()}
    if Path(part.name).suffix == ".parquet":
        missing = {}
    seen: set[str] = set()
    for _, record in _records(part, source):  # most files have them in the first record, some late
        if isinstance(record, Record):
            seen |= {*record.info, *record.arrays, *record.recognised}
        missing = {field: key for field, key in missing.items() if key not in seen}
        if not missing:
            break
    for field, key in missing.items():
        known = ", ".join(sorted(seen - {"numbers", "positions"}))
        raise BadRecordError(f"{part.name}: no column '{key}' for {field}; the file has: {known}")
