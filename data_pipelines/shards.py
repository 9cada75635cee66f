"""Canonical Parquet shards: the Arrow schema, an atomic writer, and zero-copy reading of record batches."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .schema import SCHEMA_VERSION, Structure


BLOCK_SIZE = 256  # structures in a row group: the unit that the stream permutes
SHARD_SIZE = 16 * BLOCK_SIZE

ARROW_SCHEMA = pa.schema(
    {
        "structure_id": pa.string(),
        "group": pa.string(),
        "level_of_theory": pa.string(),
        "atomic_numbers": pa.list_(pa.uint8()),
        "positions": pa.list_(pa.float32()),  # 3N, A; float32 rounds by 1e-6 A at 10 A
        "cell": pa.list_(pa.float64()),  # 9
        "pbc": pa.list_(pa.bool_()),  # 3
        "energy": pa.float64(),  # float32 would round a total energy of 1e4 eV to 1 meV
        "forces": pa.list_(pa.float32()),  # 3N or null
        "stress": pa.list_(pa.float64()),  # 9 or null
    }
)


class BrokenDataSetError(ValueError):
    """A converted data set with a missing, truncated or foreign file; the message names it and the mend."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or none: a temporary name beside it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it is still there only if something failed


def _flat(array: np.ndarray | None, dtype: type) -> np.ndarray | None:
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
        "energy": [s.energy for s in structures],
        "forces": [_flat(s.forces, np.float32) for s in structures],
        "stress": [_flat(s.stress, np.float64) for s in structures],
    }
    return pa.table(columns, schema=ARROW_SCHEMA)


def write_shard(structures: list[Structure], path: Path) -> dict[str, Any]:
    """Write one shard under a temporary name and rename it; returns its entry for dataset_info.json."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        to_table(structures),
        sink,
        row_group_size=BLOCK_SIZE,
        compression="zstd",
        use_dictionary=["level_of_theory"],
        use_byte_stream_split=["positions.list.element", "forces.list.element", "energy"],
    )
    data = sink.getvalue().to_pybytes()
    write_atomically(path, data)
    return {"rows": len(structures), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


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
    except (ValueError, KeyError, TypeError):
        raise BrokenDataSetError(
            f"{info_path}: damaged, or not written by evenfield: convert the source into another folder"
        ) from None
    if version > SCHEMA_VERSION:
        raise BrokenDataSetError(
            f"{info_path}: schema {version} is newer than this evenfield reads ({SCHEMA_VERSION}): upgrade evenfield"
        )
    for name, entry in info["shards"].items():
        shard = folder / name
        if not shard.is_file():
            raise BrokenDataSetError(f"{shard}: shard is missing: convert the source again")
        size = shard.stat().st_size
        if size != entry["bytes"]:
            raise BrokenDataSetError(
                f"{shard}: shard is truncated or changed ({size} of {entry['bytes']} bytes): convert the source again"
            )
    return info


def shard_paths(folder: Path | str, split: str) -> list[Path]:
    """The shards of one split, in order; raises BrokenDataSetError when there are none."""
    info = read_info(folder)
    paths = [Path(folder) / name for name in sorted(info["shards"]) if name.startswith(f"{split}-")]
    if not paths:
        raise BrokenDataSetError(f"{folder}: holds no '{split}' structures; it has {info['num_structures']}")
    return paths
