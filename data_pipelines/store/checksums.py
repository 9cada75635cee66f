"""Checksums of a data set, which verify that data are read back exactly as they were written.

dataset_info.json has CRC-32 checksums for each shard: one for each block (row group, the unit that
a stream reads) and one for the footer. So a stream verifies only what it reads. CRC-32 detects
every change of a single bit, and misses one larger change in four billion. It protects against
broken disks and transfers, and is three times as fast as SHA-256.

dataset_info.json also holds a SHA-256 of its own content, and one of census.json.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.seals import SEAL, digest_of


# bytes at the end of a Parquet file: the length of the footer (4 bytes) and "PAR1"
TAIL = 8


def seal_is_broken(content: dict[str, Any]) -> bool:
    """Whether sealed content has changed since it was written."""
    return bool(content.get(SEAL) != digest_of(content))


def sums_of(data: bytes) -> list[int]:
    """CRC-32 of each block of a shard, followed by the CRC-32 of its footer."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    start_of_footer = _start_of_footer(data[-TAIL:], len(data))
    sums = []
    for first, last in block_ranges(metadata, start_of_footer):
        sums.append(zlib.crc32(data[first:last]))
    sums.append(zlib.crc32(data[start_of_footer:]))
    return sums


def block_ranges(metadata: pq.FileMetaData, start_of_footer: int) -> list[tuple[int, int]]:
    """Byte range [first, last) of each block; together they cover everything but the footer."""
    starts = []
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        has_dictionary = column.has_dictionary_page
        starts.append(column.dictionary_page_offset if has_dictionary else column.data_page_offset)
    # the first bytes of the file, "PAR1", belong to the first block
    starts[0] = 0
    return list(zip(starts, [*starts[1:], start_of_footer], strict=True))


class ShardSums:
    """The checksums of one shard, to be compared with the bytes on disk."""

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        """`entry` is the shard's entry in dataset_info.json."""
        self.path = path
        self._sums: list[int] = entry["crc32"]
        self._ranges: list[tuple[int, int]] = []

    def footer_is_right(self) -> bool:
        """Whether the footer is intact. Call this before the shard is parsed."""
        with self.path.open("rb") as file:
            start = _find_footer(file)
            if start < 0:
                return False
            file.seek(start)
            return zlib.crc32(file.read()) == self._sums[-1]

    def blocks_are_right(self, metadata: pq.FileMetaData, groups: list[int]) -> bool:
        """Whether the given row groups are intact. The footer must have been verified before."""
        with self.path.open("rb") as file:
            if not self._ranges:
                self._ranges = block_ranges(metadata, _find_footer(file))
            for group in groups:
                first, last = self._ranges[group]
                file.seek(first)
                if zlib.crc32(file.read(last - first)) != self._sums[group]:
                    return False
        return True


def _find_footer(file: BinaryIO) -> int:
    """Offset of the footer in an open shard; negative if the file is too short for one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - TAIL, 0))
    return _start_of_footer(file.read(TAIL), size)


def _start_of_footer(tail: bytes, size: int) -> int:
    return size - TAIL - int.from_bytes(tail[:4], "little")
