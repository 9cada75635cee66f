"""The file with the fingerprints of a data set's structures, for comparison with other data sets.

`fingerprints.npy` has one int64 for each structure: first train, then valid, then test, each in
file order. Near copies at the same level of theory have equal fingerprints
(convert/near_duplicates.py). They are stored because each of them costs a neighbour search, and
take 8 MB for a million structures.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import special_kind, write_atomically
from ..structure import SPLITS
from .shards import CONVERT_AGAIN, BrokenDataSetError, lacks_sums, scan_shard, shard_paths


FINGERPRINTS = "fingerprints.npy"
SHA256 = "fingerprints_sha256"  # key in dataset_info.json
HEADER_BYTES = 4096  # upper bound for the header of a .npy file


def write_fingerprints(folder: Path, of_split: dict[str, np.ndarray]) -> str:
    """Write the fingerprints (S,) of all splits; returns the SHA-256 of the file."""
    joined = np.concatenate([of_split[split] for split in SPLITS]).astype("<i8")
    content = io.BytesIO()
    np.save(content, joined)
    data = content.getvalue()
    write_atomically(folder / FINGERPRINTS, data)
    return hashlib.sha256(data).hexdigest()


def read_fingerprints(folder: Path, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read the fingerprints: split -> (S,) int64, in file order.

    info: the content of dataset_info.json.

    Raises BrokenDataSetError if the file is missing or has changed since it was written.
    """
    stated = info.get(SHA256)
    path = folder / FINGERPRINTS
    if stated is None:
        raise lacks_sums(folder)
    if not path.exists():
        raise BrokenDataSetError("is missing", file=path, remedy=CONVERT_AGAIN)

    counts = [info["num_structures"][split] for split in SPLITS]
    most_bytes = 8 * sum(counts) + HEADER_BYTES
    is_small_file = special_kind(path) is None and path.stat().st_size <= most_bytes
    data = path.read_bytes() if is_small_file else b""
    if hashlib.sha256(data).hexdigest() != stated:
        raise BrokenDataSetError(
            "was changed since it was written (its checksum differs)",
            file=path,
            remedy=CONVERT_AGAIN,
        )
    joined = np.load(io.BytesIO(data), allow_pickle=False)
    ends = np.cumsum(counts)[:-1]
    return dict(zip(SPLITS, np.split(joined, ends), strict=True))


def structure_id_at(folder: Path, info: dict[str, Any], split: str, row: int) -> str:
    """The id of the structure at index `row` of a split, in file order.

    Raises BrokenDataSetError if the split has fewer structures.
    """
    for path in shard_paths(folder, split):
        num_rows = info["shards"][path.name]["rows"]
        if row >= num_rows:
            row -= num_rows
            continue
        for table in scan_shard(path, ["structure_id"]):
            if row < table.num_rows:
                return str(table["structure_id"][row].as_py())
            row -= table.num_rows
    raise BrokenDataSetError(
        f"has fewer {split} structures than it states", file=folder, remedy=CONVERT_AGAIN
    )
