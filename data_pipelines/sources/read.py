"""Read a source of any kind into checked canonical structures, following its config.

A source is a file, a folder, a glob, a URL or a hub data set (`locations.py`), in any of the
formats in `formats.py`. It is cut into parts that can be read in any order and in any process.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ase import Atoms

from ...core.labels import LABELS
from ..structure import SEARCH_RADIUS, BadRecordError, Pairs, Structure, check_structure
from .ase_files import record_from_atoms
from .config import GEOMETRY, SourceConfig
from .formats import SUFFIXES, format_of
from .locations import SourceError, fingerprint, list_files, plain_path
from .naming import name_files, stem_of
from .records import Record, Unread, is_wanted, structure_from_record, unread_columns
from .source_format import Part


RECORDS_PER_PART = 4096
# Sample in which the config's columns are looked for: number of parts, and number of records in
# each part after the first.
COLUMN_PARTS = 64
COLUMN_RECORDS = 100

# The shards of converted and of hub data sets are named after their split: train-00000.parquet or
# train/0000.parquet.
SPLIT_NAME = "train|valid|val|validation|test"
SHARD_NAME = re.compile(
    rf"(.*/)?((?P<split>{SPLIT_NAME})-\d{{5}}[^/]*|(?P<folder>{SPLIT_NAME})/\d{{4,5}}\.parquet)"
)

Item = TypeVar("Item")
Count = Callable[[Record, Structure, Unread, Pairs], None]


def list_parts(
    source: str, config: SourceConfig, records_per_part: int = RECORDS_PER_PART
) -> list[Part]:
    """List the parts of a source, in a stable order.

    Parquet files are cut between row groups, local databases and xyz files between records. Every
    other file is one part, and so is every remote file that must be downloaded first.

    records_per_part: approximate size of a part.

    Raises SourceError if there is nothing to read.
    """
    names = _files(source, config)
    folder = plain_path(source)
    named = name_files(names, str(folder) if folder.is_dir() else None)

    parts = []
    for name in names:
        about = named[name]
        for part in format_of(name).parts(name, records_per_part):
            parts.append(replace(part, id_prefix=about.id_prefix, split=about.split))
    if not parts:
        raise SourceError("contains no structures", file=source, remedy="write the file again")
    return parts


def split_files(parts: list[Part], config: SourceConfig) -> dict[str, int]:
    """Split -> number of files whose names state it; empty if the config ignores names."""
    if config.split_by != "file":
        return {}
    splits = {part.name: part.split for part in parts if part.split is not None}
    return dict(Counter(splits.values()))


def sample_parts(source: str, config: SourceConfig, count: int) -> list[Part]:
    """At most `count` parts, evenly spaced over the source; opens at most `count` files."""
    parts = []
    for name in _evenly_spaced(_files(source, config), count):
        parts += format_of(name).parts(name, RECORDS_PER_PART)
    return _evenly_spaced(parts, count)


def _files(source: str, config: SourceConfig) -> list[str]:
    return list_files(source, SUFFIXES, config.hub_config)


def _evenly_spaced(items: list[Item], count: int) -> list[Item]:
    """`count` evenly spaced items including the first and last, or all if there are fewer."""
    count = min(count, len(items))
    last = len(items) - 1
    steps = max(count - 1, 1)
    return [items[step * last // steps] for step in range(count)]


def read_part(
    part: Part,
    config: SourceConfig,
    count: Count | None = None,
    pair_radius: float = SEARCH_RADIUS,
) -> Iterator[Structure | BadRecordError | None]:
    """Yield one item for each record of a part, in order.

    An item is a Structure, or a BadRecordError that names the file and the record, or None if the
    record does not pass the config's filters.

    count: called for each structure with its record, the structure, its unread columns that look
        like labels, and its pairs of atoms.
    pair_radius: radius of these pairs, A.

    Raises SourceError if the file cannot be read or lacks a column that the config names.
    """
    prefix = part.id_prefix or stem_of(part.name)
    split = _split_of_shard(part.name) or part.split
    for index, record in _records(part, config):
        try:
            found = _checked(record, config, f"{prefix}-{index}", split, count, pair_radius)
        except BadRecordError as error:
            error.file = part.name
            error.record = index
            # the traceback would keep the record's arrays in memory as long as the error exists
            found = error.with_traceback(None)
        yield found


def _checked(
    record: Record | BadRecordError,
    config: SourceConfig,
    default_id: str,
    split: str | None,
    count: Count | None,
    pair_radius: float,
) -> Structure | BadRecordError | None:
    if isinstance(record, BadRecordError):
        raise record
    if not is_wanted(record, config):
        return None
    unread = unread_columns(record, config)
    structure = structure_from_record(record, config, default_id, split, unread)
    pairs = check_structure(structure, pair_radius)
    if count is not None:
        count(record, structure, unread, pairs)
    return structure


def _records(part: Part, config: SourceConfig) -> Iterator[tuple[int, Record | BadRecordError]]:
    kind = format_of(part.name)
    if not kind.is_table:
        _refuse_geometry_columns(part.name, config)
    return kind.records(part, config)


def _refuse_geometry_columns(name: str, config: SourceConfig) -> None:
    for field in GEOMETRY:
        if field in config.columns:
            raise SourceError(
                f"columns.{field} is for Parquet and hub data sets, and ASE finds {field} itself",
                file=name,
                remedy="remove the key",
            )


def _split_of_shard(name: str) -> str | None:
    """The split that a shard's name states, regardless of the source's other files.

    The name must match SHARD_NAME exactly: a single train.xyz does not state a split.
    """
    match = SHARD_NAME.fullmatch(name)
    return (match["split"] or match["folder"]) if match else None


def read_structures(path: Path | str, config: SourceConfig) -> Iterator[Structure]:
    """Yield the checked canonical structures of a source, part by part.

    Skips records that do not pass the config's filters. Raises BadRecordError at the first bad
    record, which `read_part` yields instead, and SourceError if a file cannot be read.
    """
    for part in list_parts(str(path), config):
        for found in read_part(part, config):
            if isinstance(found, Structure):
                yield found
            elif found is not None:
                raise found


def structure_from_atoms(atoms: Atoms, config: SourceConfig, default_id: str) -> Structure:
    """Convert ase.Atoms with labels to a canonical structure.

    The elements and labels are checked as in `structure_from_record`; the geometry is not.
    Raises BadRecordError.
    """
    return structure_from_record(record_from_atoms(atoms), config, default_id)


def source_fingerprint(source: str, config: SourceConfig) -> str:
    """SHA-256 of a source: the bytes of local files; etag, commit and size of remote ones."""
    return fingerprint(_files(source, config))


def check_columns_exist(source: Path | str, config: SourceConfig) -> None:
    """Raise SourceError if the config names a column that no record of a sample has.

    This runs before a conversion, which would otherwise take hours to find that a label is missing
    everywhere. The sample is the whole first part and the first records of other parts, because a
    label may be present in only some files of a folder.
    """
    # the sampled files may be empty; list_parts then finds a part in another file, or raises
    parts = sample_parts(str(source), config, COLUMN_PARTS) or list_parts(str(source), config)

    # setting -> column that has not been found yet
    missing: dict[str, str] = {}
    if not format_of(parts[0].name).is_table:
        for label in LABELS:
            # if a label has several columns, none of them needs to be present
            columns = config.names_of(label)
            if len(columns) == 1:
                missing[f"columns.{label}"] = columns[0]
        for label, column in config.masks.items():
            missing[f"masks.{label}"] = column

    # Most files have all columns in the first record, but some labels appear only later. A table
    # format compares its schema with the config before it yields the first record.
    seen: set[str] = set()
    for part in parts:
        num_records = RECORDS_PER_PART if part is parts[0] else COLUMN_RECORDS
        for _, record in islice(_records(part, config), num_records):
            if not isinstance(record, Record):
                # an unreadable record may have the columns; the conversion will report its error
                return
            seen |= {*record.info, *record.arrays, *record.recognised}
            missing = {field: column for field, column in missing.items() if column not in seen}
            if not missing:
                return

    # report only the first one, because the list of columns is long
    for field, column in missing.items():
        known = ", ".join(sorted(seen - {"numbers", "positions"}))
        raise SourceError(
            f"no column '{column}' for {field}; the file has: {known}", file=parts[0].name
        )
