"""Canonical Parquet shards: the Arrow schema, an atomic writer, and zero-copy reading of record batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.errors import EvenfieldError
from ...core.files import write_atomically
from ...core.labels import LABELS, Label
from ..structure import SCHEMA_VERSION, Structure


BLOCK_SIZE = 256  # structures in a row group: the unit that the stream permutes
SHARD_SIZE = 16 * BLOCK_SIZE

ARROW_TYPES = {"float32": pa.float32(), "float64": pa.float64()}


def _arrow_type(label: Label) -> pa.DataType:
    """Arrays lie flat: 3N numbers for the forces, 9 for a stress."""
    scalar = ARROW_TYPES[label.storage]
    return scalar if label.shape(1) == () else pa.list_(scalar)


ARROW_SCHEMA = pa.schema(
    {
        "structure_id": pa.string(),
        "group": pa.string(),
        "level_of_theory": pa.string(),
        "atomic_numbers": pa.list_(pa.uint8()),
        "positions": pa.list_(pa.float32()),  # 3N, A; float32 rounds by 1e-6 A at 10 A
        "cell": pa.list_(pa.float64()),  # 9
        "pbc": pa.list_(pa.bool_()),  # 3
    }
    | {name: _arrow_type(label) for name, label in LABELS.items()}  # null where not labelled
)


class BrokenDataSetError(EvenfieldError):
    """A converted data set with a missing, truncated or foreign file; the message names it and the mend."""


def _flat(array: np.ndarray | None, dtype: Any) -> np.ndarray | None:
    return None if array is None else np.asarray(array, dtype=dtype).ravel()


def to_table(structures: list[Structure]) -> pa.Table:
    """Structures as an Arrow table in the canonical schema; a missing label is null."""
    columns: dict[str, list[Any]] = {
        "structure_id": [s.structure_id for s in structures],
        "group": [s.group for s in structures],
        "level_of_theory": [s.level_of_theory for s in structures],
        "atomic_numbers": [_flat(s.atomic_numbers, np.uint8) for s in structures],
        "positions": [_flat(s.positions, np.float32) for s in structures],
        "cell": [_flat(s.cell, np.float64) for s in structures],
        "pbc": [_flat(s.pbc, np.bool_) for s in structures],
    }
    for name, label in LABELS.items():
        values = [structure.labels.get(name) for structure in structures]
        if label.shape(1) != ():
            values = [_flat(value, np.dtype(label.storage)) for value in values]
        columns[name] = values
    return pa.table(columns, schema=ARROW_SCHEMA)


def write_shard(table: pa.Table, path: Path) -> dict[str, Any]:
    """Write a table in the canonical schema as one shard, atomically; returns its entry for dataset_info.json."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=BLOCK_SIZE,
        compression="zstd",
        use_dictionary=["level_of_theory"],
        use_byte_stream_split=["positions.list.element", "forces.list.element", "energy"],
        write_page_checksum=True,
    )
    data = sink.getvalue().to_pybytes()
    write_atomically(path, data)
    return {"rows": table.num_rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_info(folder: Path | str) -> dict[str, Any]:
    """dataset_info.json of a converted data set, after checking that every shard is there and whole."""
    folder = Path(folder)
    info_path = folder / "dataset_info.json"
    if not info_path.is_file():
        raise BrokenDataSetError(
            f"{folder}: not a converted data set (no dataset_info.json): run `evenfield data convert SOURCE {folder}`"
        )
    try:
        info = json.loads(info_path.read_text())
        version = int(info["schema_version"])
        counts = {split: int(count) for split, count in info["num_structures"].items()}
        sizes = {
            str(name): (int(entry["rows"]), int(entry["bytes"]))
            for name, entry in info["shards"].items()
        }
        whole = sum(counts.values()) == sum(rows for rows, _ in sizes.values())
        texts = isinstance(info["source"]["file"], str) and isinstance(
            info["source"]["sha256"], str
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        whole, texts, version, sizes = False, False, 0, {}
    if version > SCHEMA_VERSION:
        raise BrokenDataSetError(
            f"{info_path}: schema {version} is newer than this evenfield reads ({SCHEMA_VERSION}): upgrade evenfield"
        )
    if not (whole and texts):
        raise BrokenDataSetError(
            f"{info_path}: damaged, or not written by evenfield: convert the source into another folder"
        )
    for name, (_, num_bytes) in sizes.items():
        _check_shard(folder / name, num_bytes)
    return info


def _check_shard(shard: Path, num_bytes: int) -> None:
    if shard.name[:1] == "." or not shard.is_file():
        raise BrokenDataSetError(f"{shard}: shard is missing: convert the source again")
    size = shard.stat().st_size
    if size != num_bytes:
        raise BrokenDataSetError(
            f"{shard}: shard is truncated or changed ({size} of {num_bytes} bytes): convert the source again"
        )


def shard_paths(folder: Path | str, split: str) -> list[Path]:
    """The shards of one split, in order; raises BrokenDataSetError when there are none."""
    info = read_info(folder)
    paths = [Path(folder) / name for name in sorted(info["shards"]) if name.startswith(f"{split}-")]
    if not paths:
        raise BrokenDataSetError(
            f"{folder}: holds no '{split}' structures; it has {info['num_structures']}"
        )
    return paths


def scan_shard(
    path: Path, columns: list[str] | None = None, rows: int = BLOCK_SIZE
) -> Iterator[pa.Table]:
    """Tables of up to `rows` structures of one shard, only the named columns of it.

    Raises BrokenDataSetError for a shard that is damaged or in another schema.
    """
    names = columns or ARROW_SCHEMA.names
    try:
        file = pq.ParquetFile(
            path,
            page_checksum_verification=True,
            read_dictionary=["level_of_theory"],
            pre_buffer=False,  # a tenth faster on a disk; it is for remote files
        )
        schema = pa.schema([ARROW_SCHEMA.field(name) for name in names])
        if problem := foreign_columns(file.schema_arrow, schema):
            raise BrokenDataSetError(f"{path}: {problem}: convert the source again")
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            if "positions" in names:
                _check_lengths(table)
            yield table
    except BrokenDataSetError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        pa.ArrowException,
    ) as error:  # pyarrow raises any of these
        raise BrokenDataSetError(
            f"{path}: damaged ({' '.join(str(error).split())}): convert again"
        ) from None


def foreign_columns(found: pa.Schema, expected: pa.Schema) -> str | None:
    for column in expected:
        if column.name not in found.names:
            if column.name in LABELS:  # registered after the data set was converted
                continue
            return f"column '{column.name}' is missing"
        kind = found.field(column.name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind != column.type:
            return f"column '{column.name}' holds {kind}, not {column.type}"
    return None


def _check_lengths(table: pa.Table) -> None:
    """Raise ValueError where lists do not have the lengths that a structure has."""
    atoms = _lengths(table, "atomic_numbers")
    expected: dict[str, Any] = {"positions": 3 * atoms, "cell": 9, "pbc": 3}
    for name, label in LABELS.items():
        if label.shape(1) != ():
            expected[name] = 3**label.rank * (atoms if label.per == "atom" else 1)
    for name, length in expected.items():
        lengths = _lengths(table, name)
        optional = name in LABELS
        if not ((lengths == length) | (optional & (lengths == -1))).all():
            raise ValueError(f"column '{name}' has lists of a wrong length")
    for name in ("structure_id", "group", "level_of_theory"):
        if table[name].null_count:
            raise ValueError(f"column '{name}' has empty places")


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    """Length of each list of a column, -1 where it is null."""
    return pc.list_value_length(table[name]).fill_null(-1).to_numpy()
