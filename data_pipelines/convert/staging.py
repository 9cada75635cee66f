"""The first half of a conversion: each part of a source becomes one staged file, in any process.

A staged file is a Parquet file. It has the canonical columns of the kept structures, and columns
for their split, record number and hashes. Its footer describes the part (`StagedPart`). The file
gets its final name only when it is complete, and the name contains a checksum. An interrupted
conversion can therefore continue with the parts that are missing or damaged.

Every conversion has its own folder, OUT/.parts/KEY, so conversions with different settings do not
use each other's parts. Nothing else in OUT is touched.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import whole_file, write_atomically
from ..census.domain import StructureDomains
from ..sources.source_format import Part
from ..store.folder_files import PARTS
from ..store.shards import ARROW_SCHEMA, BLOCK_SIZE, to_table
from ..structure import SPLITS, BadRecordError, Pairs, Structure
from .near_duplicates import hash_63


ORIGIN = "origin.json"  # file in the folder of a conversion that says what is converted
DIGITS = 16  # length of the checksum in the name of a staged file
STAGED_COLUMNS = {
    "split_code": pa.uint8(),  # index into SPLITS
    "is_stated": pa.bool_(),  # whether the source states the split
    "key_hash": pa.int64(),  # hash of `StagedRow.key`
    "level_hash": pa.int64(),
    "elements": pa.list_(pa.uint8()),  # distinct atomic numbers
    "record": pa.int64(),
    "id_hash": pa.int64(),
    "fingerprint": pa.int64(),
    "material": pa.int64(),  # null unless materials of several sources are compared
}
# columns for the census; kept apart, because they are long and not needed to arrange splits
DOMAIN_COLUMNS = {
    "boundary": pa.uint8(),
    "pairs": pa.list_(pa.uint16()),
    "pair_distances": pa.list_(pa.float32()),
}
STAGED_SCHEMA = pa.schema(
    [
        *ARROW_SCHEMA,
        *(pa.field(name, kind) for name, kind in (STAGED_COLUMNS | DOMAIN_COLUMNS).items()),
    ]
)
FOOTER_KEY = b"evenfield"


@dataclass
class StagedPart:
    """What happened to the records of one part: each was kept, filtered or rejected."""

    conversion: str
    """Key of the conversion, see `conversion_key`."""

    source: str
    """File that the records come from."""

    kept: int = 0
    filtered: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    """Counts of labels in the kept structures, see sources/label_tally.py."""


@dataclass(frozen=True)
class StagedRow:
    """One row of a staged file: a kept structure and its metadata."""

    structure: Structure

    record: int
    """Record number in the source."""

    split: str
    is_stated: bool
    """Whether the split is stated, and not derived from a hash."""

    key: str
    """The text that is hashed to choose the split, see `splits.split_key`."""

    fingerprint: int
    """See near_duplicates.py."""

    pairs: Pairs
    """Pairs of atoms within the radius of the domain."""

    material: int | None
    """Hash of the material; None unless several sources are compared."""


def conversion_key(origin: dict[str, Any], parts: list[Part]) -> str:
    """Hash of everything that determines the staged files: content, settings, parts, columns."""
    cut = [asdict(part) for part in parts]
    text = json.dumps([origin, cut, STAGED_SCHEMA.names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def staging_folder(out: Path, conversion: str) -> Path:
    """The folder in which a conversion stages its parts."""
    return out / PARTS / conversion[:DIGITS]


def begin(folder: Path, origin: dict[str, Any]) -> None:
    """Create the folder of a conversion, and record in it what is converted."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ORIGIN, json.dumps(origin, indent=1))


def origins(out: Path) -> list[dict[str, Any] | None]:
    """The origins of unfinished conversions in `out`; None for an origin that cannot be read."""
    if not (out / PARTS).is_dir():
        return []
    found: list[dict[str, Any] | None] = []
    for folder in sorted((out / PARTS).iterdir()):
        if not list(folder.glob("*.parquet")):
            # no staged parts, so nothing could be lost
            continue
        try:
            content = json.loads((folder / ORIGIN).read_text())
            found.append({"file": content["file"], "sha256": content["sha256"]})
        except (OSError, ValueError, KeyError, TypeError):
            found.append(None)
    return found


def tidy(out: Path, folder: Path) -> None:
    """Remove the folder of a conversion, and empty parent folders, unless it has staged parts."""
    if list(folder.glob("*.parquet")):
        return
    with suppress(OSError):
        (folder / ORIGIN).unlink(missing_ok=True)
        # rmdir fails for a folder that is not empty, which then stays
        for empty in (folder, out / PARTS, out):
            empty.rmdir()


def find_staged(folder: Path, index: int, conversion: str) -> tuple[Path, StagedPart] | None:
    """File and footer of a staged part; None if it is absent, damaged or of another conversion."""
    for path in sorted(folder.glob(f"{index:06d}-*.parquet")):
        if path.stem != f"{index:06d}-{_checksum(path)}":
            continue
        try:
            footer = pq.read_metadata(path).metadata or {}
            staged = StagedPart(**json.loads(footer[FOOTER_KEY]))
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
            continue
        if staged.conversion == conversion:
            return path, staged
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return digest.hexdigest()[:DIGITS]


def stage(
    records: Iterable[tuple[int, Structure | BadRecordError | None]],
    folder: Path,
    index: int,
    staged: StagedPart,
    *,
    row_of: Callable[[Structure, int], StagedRow],
    wanted: Callable[[Structure], bool],
    skip_bad: bool,
) -> StagedPart:
    """Write the wanted structures as a staged file in `folder`; returns `staged` with its counts.

    records: numbered items; None is a record that did not pass the filters of its source.
    index: number of the part.
    row_of: makes the row of a structure, given its record number.
    wanted: whether a structure is kept.

    Raises the first BadRecordError among the records, unless `skip_bad`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / f".{index:06d}.{secrets.token_hex(4)}"
    rows: list[StagedRow] = []
    # Another process may stage the same part. Each process writes a separate temporary file, and
    # equal files get equal names in the end.
    with whole_file(unnamed) as temporary:
        # optimised for speed and not size, because these files are read once and deleted
        with pq.ParquetWriter(
            temporary, STAGED_SCHEMA, compression="lz4", use_dictionary=False
        ) as writer:
            for number, record in records:
                if isinstance(record, BadRecordError):
                    if not skip_bad:
                        raise record
                    staged.rejected.append(rejection(record))
                elif record is None or not wanted(record):
                    staged.filtered += 1
                else:
                    rows.append(row_of(record, number))
                    staged.kept += 1
                if len(rows) == BLOCK_SIZE:
                    writer.write_table(_table(rows))
                    rows = []
            if rows:
                writer.write_table(_table(rows))
            writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(asdict(staged))})
        checksum = _checksum(temporary)
    unnamed.replace(folder / f"{index:06d}-{checksum}.parquet")
    return staged


def rejection(error: BadRecordError) -> dict[str, Any]:
    """The entry of rejected.jsonl for a bad record."""
    return {"file": error.file, "record": error.record, "reason": error.reason}


def _table(rows: list[StagedRow]) -> pa.Table:
    structures = [row.structure for row in rows]
    table = to_table(structures)
    columns = {
        "split_code": [SPLITS.index(row.split) for row in rows],
        "is_stated": [row.is_stated for row in rows],
        "key_hash": [hash_63(row.key) for row in rows],
        "level_hash": [hash_63(structure.level_of_theory) for structure in structures],
        "elements": [structure.elements.astype(np.uint8) for structure in structures],
        "record": [row.record for row in rows],
        "id_hash": [hash_63(structure.structure_id) for structure in structures],
        "fingerprint": [row.fingerprint for row in rows],
        "material": [row.material for row in rows],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, STAGED_COLUMNS[name]))
    domains = StructureDomains.of(structures, [row.pairs for row in rows])
    starts = pa.array(np.concatenate([[0], np.cumsum(domains.num_pairs)]), pa.int32())
    further = {
        "boundary": pa.array(domains.boundaries),
        "pairs": pa.ListArray.from_arrays(starts, domains.pairs),
        "pair_distances": pa.ListArray.from_arrays(starts, domains.distances),
    }
    for name, column in further.items():
        table = table.append_column(name, column)
    return table
