"""Canonical Parquet shards: the Arrow schema, an atomic writer, and a checked reader.

A shard is a Parquet file with structures of one split. dataset_info.json lists the shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.addresses import similar_names, without_secrets
from ...core.destination import DATA_SETS, kind_of
from ...core.errors import EvenfieldError
from ...core.files import special_kind, write_atomically
from ...core.labels import LABELS, Label
from ...core.seals import sealed
from ..structure import SCHEMA_VERSION, Structure
from .checksums import ShardSums, seal_is_broken, sums_of
from .parquet_limits import excess_of, excess_of_rows


BLOCK_SIZE = 256  # structures in a row group, the unit in which the stream shuffles
SHARD_SIZE = 16 * BLOCK_SIZE

NULL = -1  # stands for the length of a null list

ARROW_TYPES = {"float32": pa.float32(), "float64": pa.float64()}


def _is_scalar(label: Label) -> bool:
    """Whether a label is a single number per structure."""
    return label.per == "structure" and label.rank == 0


def _arrow_type(label: Label) -> pa.DataType:
    """The column type of a label. Arrays are flat: 3N numbers for forces, 9 for a stress."""
    number = ARROW_TYPES[label.storage]
    return number if _is_scalar(label) else pa.list_(number)


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


# columns that compress better if bytes of equal significance are stored together
BYTE_STREAM_SPLIT = ["positions.list.element", "forces.list.element", "energy"]

# remedy for a damaged file: the same command verifies the checksums and converts again
CONVERT_AGAIN = "convert the source again"
# remedy for everything else: the same command alone would find nothing to do, or refuse to replace
# another data set
CONVERT_AFRESH = "convert the source again with --overwrite"

INFO = "dataset_info.json"
SHARD_NAME = re.compile(r"(train|valid|test)-\d{5,}\.parquet")
# largest accepted size of dataset_info.json and census.json, which usually have 0.01 to 1 MB
MOST_BYTES = 8 * 2**20
# additional size of dataset_info.json per shard; an entry has about 0.4 kB
BYTES_PER_SHARD = 2048


class BrokenDataSetError(EvenfieldError):
    """A data set is missing, or one of its files is missing, damaged or not from evenfield."""


# --- writing


def to_table(structures: list[Structure]) -> pa.Table:
    """Convert structures to an Arrow table with ARROW_SCHEMA; a missing label is null."""
    columns: dict[str, list[Any]] = {
        "structure_id": [structure.structure_id for structure in structures],
        "group": [structure.group for structure in structures],
        "level_of_theory": [structure.level_of_theory for structure in structures],
        "atomic_numbers": _flat_arrays([one.atomic_numbers for one in structures], np.uint8),
        "positions": _flat_arrays([one.positions for one in structures], np.float32),
        "cell": _flat_arrays([one.cell for one in structures], np.float64),
        "pbc": _flat_arrays([one.pbc for one in structures], np.bool_),
    }
    for name, label in LABELS.items():
        values = [structure.labels.get(name) for structure in structures]
        if not _is_scalar(label):
            values = _flat_arrays(values, np.dtype(label.storage))
        columns[name] = values
    return pa.table(columns, schema=ARROW_SCHEMA)


def _flat_arrays(arrays: list[Any], dtype: Any) -> list[np.ndarray | None]:
    return [None if array is None else np.asarray(array, dtype=dtype).ravel() for array in arrays]


def write_shard(table: pa.Table, path: Path) -> dict[str, Any]:
    """Write a table with ARROW_SCHEMA as one shard, atomically.

    Returns the shard's entry for dataset_info.json: rows, bytes, sha256 and crc32 (the checksums of
    its blocks and footer).
    """
    # written to memory first, because dataset_info.json needs its hash and size
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=BLOCK_SIZE,
        compression="zstd",
        use_dictionary=["level_of_theory"],
        use_byte_stream_split=BYTE_STREAM_SPLIT,
        write_page_checksum=True,
    )
    data = sink.getvalue().to_pybytes()
    write_atomically(path, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "rows": table.num_rows,
        "bytes": len(data),
        "sha256": sha256,
        "crc32": sums_of(data),
    }


def write_info(folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Write dataset_info.json, sealed with a checksum; returns the sealed content."""
    content = sealed(info)
    write_atomically(folder / INFO, json.dumps(content, indent=1))
    return content


# --- reading


def read_json(path: Path, most_bytes: int) -> tuple[Any, bytes]:
    """Read a JSON file of a data set; returns its content and its bytes.

    The content is None if the file is not valid JSON. Raises BrokenDataSetError if the file cannot
    be read, or has more than `most_bytes` bytes.
    """
    special = special_kind(path)
    if special is not None:
        raise BrokenDataSetError(f"is {special}, not a file", file=path, remedy=CONVERT_AGAIN)
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise BrokenDataSetError(
            f"cannot be read ({error.strerror})", file=path, remedy=CONVERT_AGAIN
        ) from None
    if len(data) > most_bytes:
        raise BrokenDataSetError(
            f"is larger than {most_bytes} bytes, and not written by evenfield",
            file=path,
            remedy=CONVERT_AGAIN,
        )
    try:
        return json.loads(data), data
    except (ValueError, RecursionError):
        return None, data


def _no_data_set(folder: Path) -> BrokenDataSetError:
    """The error for a path without a data set; its remedy is a command that would work."""
    reason = "no dataset_info.json"
    remedy = "name the folder of one; `evenfield data convert SOURCE FOLDER` makes it"
    if folder.is_file():
        reason = "a file"
        remedy = f"make one with `evenfield data convert {folder} FOLDER`, and name that folder"
    elif not folder.exists():
        reason = "no such folder"
        similar = similar_names(folder)
        if similar:
            remedy = f"did you mean {similar[0]}?"
        else:
            remedy = f"make it with `evenfield data convert SOURCE {folder}`"
    return BrokenDataSetError(f"not a converted data set ({reason})", file=folder, remedy=remedy)


def read_info(folder: Path | str) -> dict[str, Any]:
    """Read dataset_info.json of a data set, and check that every shard exists and has its size.

    Raises BrokenDataSetError otherwise.
    """
    folder = Path(folder)
    info = stated_info(folder)
    for name, entry in info["shards"].items():
        _check_shard(folder / name, int(entry["bytes"]))
    return info


def stated_info(folder: Path) -> dict[str, Any]:
    """Read dataset_info.json without looking at the other files.

    Raises BrokenDataSetError if it is absent, damaged or of a newer version.
    """
    info_path = folder / INFO
    if not info_path.is_file():
        raise _no_data_set(folder)
    try:
        info, _ = read_json(info_path, _most_bytes_of_info(folder))
    except BrokenDataSetError as error:
        error.remedy = _remedy_without_info(folder)
        raise
    try:
        version = int(info["schema_version"])
        num_structures = sum(int(count) for count in info["num_structures"].values())
        sizes = {name: int(entry["bytes"]) for name, entry in info["shards"].items()}
        num_rows = sum(int(entry["rows"]) for entry in info["shards"].values())
        source = info["source"]
        has_texts = isinstance(source["file"], str) and isinstance(source["sha256"], str)
        is_whole = has_texts and num_structures == num_rows and not seal_is_broken(info)
        # earlier versions stored addresses together with passwords
        source["file"] = without_secrets(source["file"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # damaged JSON can lead to any of these errors
        version = 0
        is_whole = False
        sizes = {}

    if version > SCHEMA_VERSION:
        raise BrokenDataSetError(
            f"schema {version} is newer than this evenfield reads ({SCHEMA_VERSION})",
            file=info_path,
            remedy="upgrade evenfield",
        )
    if not is_whole:
        raise BrokenDataSetError(
            "damaged, or not written by evenfield",
            file=info_path,
            remedy=_remedy_without_info(folder),
        )
    for name in sizes:
        if not SHARD_NAME.fullmatch(name):
            # a path could lead to a file outside the data set
            raise BrokenDataSetError(
                f"lists {name!r}, which is not the name of a shard",
                file=info_path,
                remedy=CONVERT_AFRESH,
            )
    checked: dict[str, Any] = info
    return checked


def _remedy_without_info(folder: Path) -> str:
    """The remedy for a data set whose dataset_info.json cannot be trusted."""
    if kind_of(folder) in DATA_SETS:
        # its source is not known for sure, so the user must decide whether to overwrite
        return f"{CONVERT_AFRESH}, or into another folder"
    # a conversion would not replace a folder that it does not recognise
    return "convert the source into another folder"


def _most_bytes_of_info(folder: Path) -> int:
    """Largest plausible size of dataset_info.json for the number of shards in the folder."""
    num_shards = sum(1 for _ in folder.glob("*.parquet"))
    return MOST_BYTES + BYTES_PER_SHARD * num_shards


def _check_shard(shard: Path, num_bytes: int) -> None:
    if not shard.is_file():
        raise BrokenDataSetError("shard is missing", file=shard, remedy=CONVERT_AGAIN)
    # the content is checked only when it is read, because hashing all shards would take minutes
    size = shard.stat().st_size
    if size != num_bytes:
        raise BrokenDataSetError(
            f"shard is truncated or changed ({size} of {num_bytes} bytes)",
            file=shard,
            remedy=CONVERT_AGAIN,
        )


def shard_paths(folder: Path | str, split: str) -> list[Path]:
    """The shards of one split, in order. Raises BrokenDataSetError if there are none."""
    info = read_info(folder)
    names = [name for name in sorted(info["shards"]) if name.startswith(f"{split}-")]
    if not names:
        raise BrokenDataSetError(
            f"contains no '{split}' structures; it has {info['num_structures']}", file=folder
        )
    return [Path(folder) / name for name in names]


def scan_shard(
    path: Path, columns: list[str] | None = None, rows: int = BLOCK_SIZE
) -> Iterator[pa.Table]:
    """Yield tables of up to `rows` structures of one shard, with the named columns (default: all).

    Raises BrokenDataSetError if the shard is damaged or has another schema.
    """
    names = columns or ARROW_SCHEMA.names
    sums = shard_sums(path)
    try:
        if sums is not None and not sums.footer_is_right():
            raise changed_shard(path)
        file = pq.ParquetFile(
            path,
            page_checksum_verification=True,
            read_dictionary=["level_of_theory"],
            # buffering is meant for remote files; local files are read 10 % faster without it
            pre_buffer=False,
        )
        check_schema(file.schema_arrow, path, names)
        refuse_excess(file.metadata, path)
        groups = list(range(file.num_row_groups))
        if sums is not None and not sums.blocks_are_right(file.metadata, groups):
            raise changed_shard(path)
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            # the lengths can be checked only if all columns are read, unlike for a census
            if "positions" in names:
                _check_lengths(table)
            yield table
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        # pyarrow raises any of these for a damaged file
        reason = " ".join(str(error).split())
        raise BrokenDataSetError(f"damaged ({reason})", file=path, remedy=CONVERT_AGAIN) from None


def shard_sums(path: Path) -> ShardSums | None:
    """The checksums of a shard; None if it is not part of a finished data set."""
    info_path = path.parent / INFO
    try:
        state = info_path.stat()
    except OSError:
        return None
    of_data_set = _sums_of(path.parent, state.st_ino, state.st_mtime_ns)
    return of_data_set.get(path.name)


@lru_cache(maxsize=16)
def _sums_of(folder: Path, inode: int, mtime_ns: int) -> dict[str, ShardSums]:
    """The checksums of all shards of a data set, cached until dataset_info.json changes."""
    shards = read_info(folder)["shards"]
    return {name: ShardSums(folder / name, entry) for name, entry in shards.items()}


def changed_shard(path: Path) -> BrokenDataSetError:
    """The error for a shard whose bytes have changed since it was written."""
    return BrokenDataSetError(
        "shard was changed since it was written (its checksum differs)",
        file=path,
        remedy=CONVERT_AGAIN,
    )


def lacks_sums(folder: Path) -> BrokenDataSetError:
    """The error for a data set from a version that did not write checksums of all files."""
    return BrokenDataSetError(
        "lacks checksums of the other files", file=folder / INFO, remedy=CONVERT_AFRESH
    )


def refuse_excess(metadata: pq.FileMetaData, path: Path) -> None:
    """Raise BrokenDataSetError for a shard that unpacks to far more data than it should."""
    excess = excess_of_rows(metadata, path.stat().st_size)
    if excess is None:
        excess = excess_of(metadata, range(metadata.num_row_groups), ARROW_SCHEMA.names)
    if excess is not None:
        raise BrokenDataSetError(excess, file=path, remedy=CONVERT_AFRESH)


def check_schema(found: pa.Schema, path: Path, names: list[str] | None = None) -> None:
    """Raise BrokenDataSetError unless a shard has the named columns with the canonical types.

    found: schema of the shard at `path`. names: columns to check, by default all.
    """
    for column in [ARROW_SCHEMA.field(name) for name in names or ARROW_SCHEMA.names]:
        if column.name in LABELS and column.name not in found.names:
            # the label may have been registered after the data set was converted
            continue
        if column.name not in found.names:
            raise BrokenDataSetError(
                f"column '{column.name}' is missing", file=path, remedy=CONVERT_AFRESH
            )
        # levels of theory are dictionary-encoded, and may be read as a dictionary
        kind = found.field(column.name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind != column.type:
            raise BrokenDataSetError(
                f"column '{column.name}' has type {kind}, not {column.type}",
                file=path,
                remedy=CONVERT_AFRESH,
            )


def _check_lengths(table: pa.Table) -> None:
    """Raise ValueError if lists do not have the lengths that their structures require."""
    atoms = _lengths(table, "atomic_numbers")
    expected: dict[str, Any] = {"positions": 3 * atoms, "cell": 9, "pbc": 3}
    for name, label in LABELS.items():
        if name in table.column_names and not _is_scalar(label):
            expected[name] = 3**label.rank * (atoms if label.per == "atom" else 1)
    for name, length in expected.items():
        lengths = _lengths(table, name)
        is_right = lengths == length
        if name in LABELS:
            is_right |= lengths == NULL
        if not is_right.all():
            raise ValueError(f"column '{name}' has lists of a wrong length")
    for name in ("structure_id", "group", "level_of_theory"):
        if table[name].null_count:
            raise ValueError(f"column '{name}' has null values")


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    """Length of each list in a column, (S,); NULL for a null list."""
    return pc.list_value_length(table[name]).fill_null(NULL).to_numpy()
