"""(ext)xyz files, packed or not: cut at records, so that the parts of one big file are read in parallel."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import IO

import ase.io
from ase import Atoms

from ..structure import BadRecordError


def is_xyz(name: Path | str) -> bool:
    """Is this .xyz or .extxyz, perhaps with .gz?"""
    return re.search(r"\.(ext)?xyz(\.gz)?$", str(name)) is not None


@lru_cache(maxsize=2)
def record_starts(path: str) -> list[int] | None:
    """Byte offset of each record in the unpacked text, or None where it is not a plain row of whole records."""
    starts, offset = [], 0
    try:
        with _open(path) as file:
            while line := file.readline():
                starts.append(offset)
                rows = list(islice(file, int(line) + 1))
                if len(rows) <= int(line):
                    return None
                offset += len(line) + sum(map(len, rows))
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    return starts


def xyz_frames(path: Path, first: int = 0, last: int | None = None) -> Iterator[Atoms | Exception]:
    """Records [first, last), to the end when last is None; the text is held in memory, as ASE seeks in its file.

    Where the places of all records are known, one that ASE cannot parse comes as the exception.
    """
    starts = record_starts(str(path))
    text, done = _text(path, starts, first, last), 0
    try:
        for atoms in _parsed(text):
            yield atoms
            done += 1
    except BadRecordError:
        raise
    except Exception:  # ASE's reader raises anything
        if starts is None:
            raise
        places = [start - starts[first] for start in starts[first:last]][done:]
        for start, stop in pairwise([*places, len(text)]):
            try:
                yield from _parsed(text[start:stop])
            except Exception as error:
                yield error


def _parsed(content: bytes) -> Iterator[Atoms]:
    text = content.decode()
    for count in re.findall(r"^[ \t]*([\d_]{7,})[ \t\r]*$", text, re.MULTILINE):
        if int(count) > len(text):  # ASE would look for that many lines, for hours
            raise ValueError(f"a line announces {count} atoms, more than the file has letters")
    for columns in re.findall(r"Properties=\S*?:[RISL]:(\d{5,})", text):
        if int(columns) > len(text):  # ASE would list that many, until memory is full
            raise ValueError(
                f"Properties announces {columns} columns, more than the file has letters"
            )
    with io.StringIO(text) as file:
        yield from ase.io.iread(file, ":", format="extxyz")
        if file.read().strip():
            raise BadRecordError(
                "stands a blank line, where ASE stops, and then more text: remove the line"
            )


def _text(path: Path, starts: list[int] | None, first: int, last: int | None) -> bytes:
    start, stop = 0, None
    if first or last is not None:
        assert starts is not None  # list_parts found them
        start, stop = (
            starts[first],
            starts[last] if last is not None and last < len(starts) else None,
        )
    with _open(path) as file:
        file.seek(start)
        return file.read(-1 if stop is None else stop - start)


def _open(path: Path | str) -> IO[bytes]:
    return gzip.open(path, "rb") if str(path).endswith(".gz") else Path(path).open("rb")  # type: ignore[return-value]
