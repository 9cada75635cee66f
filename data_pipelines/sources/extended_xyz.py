"""(Extended) xyz files, also with gzip, cut between records to read one big file in parallel."""

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
from .ase_files import records_of_frames, require_content
from .config import SourceConfig
from .locations import SourceError, is_url, local_file, plain_path
from .records import Record
from .source_format import Part, SourceFormat, cut_into_parts


class ExtendedXyz(SourceFormat):
    """Frames of text, each with its number of atoms in the first line."""

    suffixes = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """Ranges of records of a local file; a remote one is copied here, so it is one part."""
        if is_url(name):
            return [Part(name)]
        starts = record_starts(str(plain_path(name)))
        if not starts:
            return [Part(name)]
        return cut_into_parts(name, range(len(starts)), records_per_part)

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Index and record of each frame; see SourceFormat."""
        with local_file(part.name) as path:
            require_content(path, part.name)
            yield from records_of_frames(part, xyz_frames(path, part.first, part.last))


# asked for when a file is cut, and again by each process that reads a part of it
@lru_cache(maxsize=2)
def record_starts(path: str) -> list[int] | None:
    """Byte offset of each record in the uncompressed text.

    None when the file is not a plain sequence of whole records. ASE then reads it from the
    beginning and finds out what is wrong.
    """
    starts = []
    offset = 0
    try:
        with _open(path) as file:
            while line := file.readline():
                starts.append(offset)
                num_atoms = int(line)
                # the comment line and one line per atom
                rows = list(islice(file, num_atoms + 1))
                if len(rows) <= num_atoms:
                    return None
                offset += len(line) + sum(map(len, rows))
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    return starts


def xyz_frames(path: Path, first: int = 0, last: int | None = None) -> Iterator[Atoms | Exception]:
    """Frames [first, last) of a file, to its end when `last` is None.

    Where the places of all records are known, a record that ASE cannot parse comes as the
    exception, and those after it follow. Their text is in memory, because ASE seeks in its file.
    """
    starts = record_starts(str(path))
    text = _text(path, starts, first, last)
    # how many frames were yielded before ASE failed
    num_parsed = 0
    try:
        # the fast way: ASE parses all frames in one go
        for atoms in _parsed(text):
            yield atoms
            num_parsed += 1
        return
    except SourceError:
        raise
    except Exception:
        # ASE's reader raises all kinds of errors
        if starts is None:
            raise

    # one of the remaining records is broken: parse each of them by itself
    places = [start - starts[first] for start in starts[first:last]]
    bounds = [*places[num_parsed:], len(text)]
    for start, stop in pairwise(bounds):
        try:
            yield from _parsed(text[start:stop])
        except Exception as error:
            yield error


def _parsed(content: bytes) -> Iterator[Atoms]:
    text = content.decode()
    # a damaged number would make ASE look for that many lines, for hours
    for count in re.findall(r"^[ \t]*([\d_]{7,})[ \t\r]*$", text, re.MULTILINE):
        if int(count) > len(text):
            raise ValueError(f"a line announces {count} atoms, more than the file has letters")
    # likewise, ASE would list that many columns until the memory is full
    for columns in re.findall(r"Properties=\S*?:[RISL]:(\d{5,})", text):
        if int(columns) > len(text):
            raise ValueError(
                f"Properties announces {columns} columns, more than the file has letters"
            )

    with io.StringIO(text) as file:
        yield from ase.io.iread(file, ":", format="extxyz")
        if file.read().strip():
            raise SourceError(
                "is followed by a blank line, at which ASE stops reading, and then by more text",
                remedy="remove the blank line",
            )


def _text(path: Path, starts: list[int] | None, first: int, last: int | None) -> bytes:
    """The text of frames [first, last)."""
    start = 0
    stop = None
    if first or last is not None:
        assert starts is not None, "only a file whose records are known is cut"
        start = starts[first]
        if last is not None and last < len(starts):
            stop = starts[last]

    with _open(path) as file:
        file.seek(start)
        return file.read(-1 if stop is None else stop - start)


def _open(path: Path | str) -> IO[bytes]:
    if str(path).endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return Path(path).open("rb")
