"""The first half of a conversion: each part of a source becomes one staged file, in any process.

A staged file is Parquet. Its columns are the canonical ones of the structures that were kept,
with their split, record number and hashes. Its footer contains what else is known of the part
(`StagedPart`). It appears under its name only when it is whole, and its name holds a checksum. A
conversion that was stopped therefore continues with the parts that are missing or damaged.

Every conversion has a folder of its own, OUT/.parts/KEY, so two with different settings do not
take each other's parts. What OUT holds otherwise is not touched.
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


ORIGIN = "origin.json"  # what is converted, inside the folder of a conversion
DIGITS = 16  # of a checksum in the name of a staged file
STAGED_COLUMNS = {
    "split_code": pa.uint8(),  # index into SPLITS
    "is_stated": pa.bool_(),  # the split
    "key_hash": pa.int64(),  # of what the split follows from
    "level_hash": pa.int64(),
    "elements": pa.list_(pa.uint8()),  # distinct ones
    "record": pa.int64(),
    "id_hash": pa.int64(),
    "fingerprint": pa.int64(),
    "material": pa.int64(),  # null unless materials of several sources are compared
}
# what the census of the shards needs; apart, because they are long and decide nothing
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


@dataclass(frozen=True)
class StagedRow:
    """A structure that was kept, and what else its row of the staged file says."""

    structure: Structure

    record: int
    """Its number in the source."""

    split: str
    is_stated: bool
    """Whether the split is stated, and not that of a hash."""

    key: str
    """What is hashed for the split."""

    fingerprint: int
    """See near_duplicates.py."""

    pairs: Pairs
    """Within the radius of the domain."""

    material: int | None
    """Hash of the material, where several sources are compared."""


def conversion_key(origin: dict[str, Any], parts: list[Part]) -> str:
    """A hash of everything that staged files depend on: content, settings, parts and columns."""
    cut = [asdict(part) for part in parts]
    text = json.dumps([origin, cut, STAGED_SCHEMA.names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def staging_folder(out: Path, conversion: str) -> Path:
    """Where a conversion stages its parts."""
    return out / PARTS / conversion[:DIGITS]


def begin(folder: Path, origin: dict[str, Any]) -> None:
    """Make the folder of a conversion, and note in it what is converted."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ORIGIN, json.dumps(origin, indent=1))


def origins(out: Path) -> list[dict[str, Any] | None]:
    """What unfinished conversions in `out` convert; None for one that does not say so."""
    if not (out / PARTS).is_dir():
        return []
    found: list[dict[str, Any] | None] = []
    for folder in sorted((out / PARTS).iterdir()):
        if not list(folder.glob("*.parquet")):
            # nothing that could be lost
            continue
        try:
            content = json.loads((folder / ORIGIN).read_text())
            found.append({"file": content["file"], "sha256": content["sha256"]})
        except (OSError, ValueError, KeyError, TypeError):
            found.append(None)
    return found


def tidy(out: Path, folder: Path) -> None:
    """Remove the folders of a conversion that has not staged anything."""
    if list(folder.glob("*.parquet")):
        return
    with suppress(OSError):
        (folder / ORIGIN).unlink(missing_ok=True)
        # a folder that is not empty stays
        for empty in (folder, out / PARTS, out):
            empty.rmdir()


def find_staged(folder: Path, index: int, conversion: str) -> tuple[Path, StagedPart] | None:
    """File and footer of the index-th part; None when it is absent, damaged or of another run."""
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
    """Write the wanted structures among numbered records as a part of `folder`; counts in `staged`.

    A record that is None did not pass the filters of its source. Raises the BadRecordError of
    the first bad record unless `skip_bad`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / f".{index:06d}.{secrets.token_hex(4)}"
    rows: list[StagedRow] = []
    # Another process may stage the same part. Each writes a file of its own, and equal files have
    # equal names.
    with whole_file(unnamed) as temporary:
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
    """A bad record as a line of rejected.jsonl."""
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
