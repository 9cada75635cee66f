"""The first half of a conversion: each part of a source becomes one staged file, in any process.

A staged file is Parquet. Its columns are the canonical ones of the structures that were kept,
with their split, record number and hashes. Its footer contains what else is known of the part
(`StagedPart`). It appears under its name only when it is whole, and it names the conversion that
it belongs to. A conversion that was stopped therefore continues with the parts that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..sources.source_format import Part
from ..store.shards import ARROW_SCHEMA, BLOCK_SIZE, to_table
from ..structure import SPLITS, BadRecordError, Structure
from .near_duplicates import fingerprint, hash_63


FOLDER = ".parts"  # inside the data set, until it is finished
STAGED_COLUMNS = {
    "split_code": pa.uint8(),  # index into SPLITS
    "record": pa.int64(),
    "id_hash": pa.int64(),
    "fingerprint": pa.int64(),
}
STAGED_SCHEMA = pa.schema(
    [*ARROW_SCHEMA, *(pa.field(name, kind) for name, kind in STAGED_COLUMNS.items())]
)
FOOTER_KEY = b"evenfield"


@dataclass
class StagedPart:
    """What became of the records of one part. The numbers kept, filtered and rejected add up."""

    conversion: str
    """Key of the conversion, see `conversion_key`."""

    source: str
    """File of the records."""

    kept: int = 0
    filtered: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    """Counts of labels in the kept structures, see sources/label_tally.py."""


def conversion_key(origin: dict[str, Any], parts: list[Part]) -> str:
    """A hash of everything that staged files depend on: content, settings, parts and columns."""
    cut = [asdict(part) for part in parts]
    text = json.dumps([origin, cut, STAGED_SCHEMA.names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def staged_path(out: Path, index: int) -> Path:
    """File of the index-th part."""
    return out / FOLDER / f"{index:06d}.parquet"


def read_staged(path: Path, conversion: str) -> StagedPart | None:
    """The footer of a staged part, or None when it is absent or belongs to another conversion."""
    try:
        footer = pq.read_metadata(path).metadata or {}
        staged = StagedPart(**json.loads(footer[FOOTER_KEY]))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None
    return staged if staged.conversion == conversion else None


def stage(
    records: Iterable[tuple[int, Structure | BadRecordError | None]],
    path: Path,
    staged: StagedPart,
    *,
    split_of: Callable[[Structure], str],
    wanted: Callable[[Structure], bool],
    skip_bad: bool,
) -> StagedPart:
    """Write the wanted structures among numbered records to `path`, atomically; counts in `staged`.

    A record that is None did not pass the filters of its source. Raises the BadRecordError of
    the first bad record unless `skip_bad`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # another process may stage the same part: each writes a file of its own
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    rows: list[tuple[Structure, int, int]] = []
    try:
        # fast rather than small: these files are read once and deleted
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
                    rows.append((record, SPLITS.index(split_of(record)), number))
                    staged.kept += 1
                if len(rows) == BLOCK_SIZE:
                    writer.write_table(_table(rows))
                    rows = []
            if rows:
                writer.write_table(_table(rows))
            writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(asdict(staged))})

        # without this, a crash of the machine could leave an empty file under the final name
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # it still exists only if something failed
        temporary.unlink(missing_ok=True)
    return staged


def rejection(error: BadRecordError) -> dict[str, Any]:
    """A bad record as a line of rejected.jsonl."""
    return {"file": error.file, "record": error.record, "reason": error.reason}


def _table(rows: list[tuple[Structure, int, int]]) -> pa.Table:
    table = to_table([structure for structure, _, _ in rows])
    columns = {
        "split_code": [code for _, code, _ in rows],
        "record": [number for _, _, number in rows],
        "id_hash": [hash_63(structure.structure_id) for structure, _, _ in rows],
        "fingerprint": [fingerprint(structure) for structure, _, _ in rows],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, STAGED_COLUMNS[name]))
    return table
