"""The fingerprints of a data set's structures: one file, for comparison with other data sets.

`fingerprints.npy` has one int64 for each structure: those of train, valid and test, each in file
order. Near copies at one level of theory have equal ones (convert/near_duplicates.py). They take 8
MB for a million structures, and cost a neighbour search each, so they are kept.
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
SHA256 = "fingerprints_sha256"  # in dataset_info.json
HEADER_BYTES = 4096  # more than numpy writes


def write_fingerprints(folder: Path, of_split: dict[str, np.ndarray]) -> str:
    """Write the fingerprints of all splits; returns the SHA-256 of the file."""
    joined = np.concatenate([of_split[split] for split in SPLITS]).astype("<i8")
    content = io.BytesIO()
    np.save(content, joined)
    data = content.getvalue()
    write_atomically(folder / FINGERPRINTS, data)
    return hashlib.sha256(data).hexdigest()


def read_fingerprints(folder: Path, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Split -> fingerprints of its structures.

    info: the content of its dataset_info.json.

    Raises BrokenDataSetError for a file that is missing, or not the one that was written.
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
    """The id of one structure of a split, by its place in file order."""
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
