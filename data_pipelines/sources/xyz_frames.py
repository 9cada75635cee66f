"""Frames of extended xyz text, read by ASE, within limits that follow from the size of the text.

ASE believes what a text announces. A line of eleven digits would keep it busy for hours, and a
number of columns would fill the memory.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from ..structure import BadRecordError, check_symmetric
from .locations import SourceError


WRITE_AGAIN = "write it again"
# No electronic-structure method labels a larger cell, and a text of ten million equal lines packs
# to some hundred kB.
MAX_ATOMS = 1_000_000
# A frame without atoms is a bad record like others, but takes three letters: a packed file of 60 kB
# would have millions.
MAX_EMPTY = 1000
# ASE reads these keys as nine numbers only
TENSOR_KEYS = ("stress", "virial")
TENSOR_KEY = re.compile(r"(?<!\S)(stress|virial)(?=\s*=)")
PLAIN_PAIR = re.compile(r"""([^\s"'{}\[\]\\=]+)=(?:"([^"\\]+)"|([^\s"'{}\[\]\\=]+))(?:\s+|$)""")
TRUTH_VALUES = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
# What is inside is no key. Quotes without an end take the rest of the line, and a key starts where
# a word does, which keeps the searches linear in the length of the line.
QUOTED = re.compile(
    r""""(?:[^"\\]|\\(?:.|\Z))*(?:"|\Z)"""
    r"""|'(?:[^'\\]|\\(?:.|\Z))*(?:'|\Z)"""
    r"|\{[^{}]*\}|\[[^\[\]]*\]",
    re.DOTALL,
)
KEY = re.compile(r"(?<![^\s=])([^\s=]+)\s*=")
# Text packs to a tenth or so, and a thousand equal frames to a hundredth. Beyond this share of
# the packed size, plus some for small files, a file was made to fill the memory.
MAX_UNPACKED = 200
UNPACKED_ALLOWANCE = 16_000_000
UNPACKED_AT_ONCE = 1 << 20
# Bytes of a text that is no plain sequence of records, such as one whose end is missing. ASE may
# look for itself what is wrong, which takes six times as much memory.
MOST_UNKNOWN = 16 << 20


@dataclass(frozen=True)
class _Scan:
    """Where the records of a text begin, as far as it is a plain sequence of whole records."""

    starts: list[int]
    """Byte offsets in the uncompressed text."""
    problem: str | None
    """What is wrong after these records; None for a text that is plain to its end."""


def record_starts(path: str) -> list[int] | None:
    """Byte offset of each record in the uncompressed text.

    None when the file is not a plain sequence of whole records. ASE then reads it from the
    beginning and finds out what is wrong.
    """
    scan = _scan(path)
    return None if scan is None or scan.problem is not None else scan.starts


def _scan(path: str) -> _Scan | None:
    """What a look at the lines that count atoms says; None for a file that cannot be looked at."""
    try:
        state = Path(path).stat()
    except OSError:
        return None
    # Part of the key: a file that was written anew has other records, under the same name.
    return _scanned(path, state.st_ino, state.st_size, state.st_mtime_ns)


# asked for when a file is cut, and again by each process that reads a part of it
@lru_cache(maxsize=2)
def _scanned(path: str, *state: int) -> _Scan | None:
    """See `_scan`; `state` is what changes when the file does."""
    starts: list[int] = []
    offset = 0
    num_empty = 0
    try:
        with _open(path) as file:
            # a line without an end is no number
            while line := file.readline(UNPACKED_AT_ONCE):
                if not line.strip() and _is_blank(file):
                    # blank lines at the end belong to no record
                    break
                try:
                    num_atoms = int(line)
                except ValueError:
                    return _Scan(starts, "does not begin with a number of atoms")
                if num_atoms < 0:
                    return _Scan(starts, "does not begin with a number of atoms")
                if num_atoms > MAX_ATOMS:
                    raise BadRecordError(
                        _too_many(num_atoms), file=path, record=len(starts), remedy=WRITE_AGAIN
                    )
                num_empty += num_atoms == 0
                if num_empty > MAX_EMPTY:
                    raise SourceError(
                        f"has more than {MAX_EMPTY:,} records without atoms",
                        file=path,
                        remedy=WRITE_AGAIN,
                    )
                # of the comment line and of one line per atom
                lengths = list(map(len, islice(file, num_atoms + 1)))
                if len(lengths) <= num_atoms:
                    return _Scan(starts, f"ends before its {num_atoms} atoms do")
                starts.append(offset)
                offset += len(line) + sum(lengths)
    except (OSError, EOFError, zlib.error):
        return None
    return _Scan(starts, None)


def _is_blank(file: IO[bytes]) -> bool:
    """Whether nothing but white space follows."""
    while chunk := file.read(UNPACKED_AT_ONCE):
        if chunk.strip():
            return False
    return True


def xyz_frames(path: Path, first: int = 0, last: int | None = None) -> Iterator[Atoms | Exception]:
    """Frames [first, last) of a file, to its end when `last` is None.

    Where the places of all records are known, a record that ASE cannot parse comes as the
    exception, and those after it follow. Their text is in memory, because ASE seeks in its file.
    """
    starts = record_starts(str(path))
    text = _text(path, starts, first, last)
    if starts is None:
        if len(text) > MOST_UNKNOWN:
            raise _not_plain(path)
        _refuse_impossible_counts(text)
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


def _not_plain(path: Path) -> SourceError:
    """The error for a long text that is no sequence of records: it is not read to find out why."""
    scan = _scan(str(path))
    problem = "cannot be unpacked, or is cut off"
    if scan is not None and scan.problem is not None:
        problem = scan.problem
    return SourceError(
        problem,
        file=path,
        record=0 if scan is None else len(scan.starts),
        remedy="write or fetch the file again",
    )


def frames_of_text(content: bytes) -> Iterator[Atoms]:
    """All frames of a text that somebody else wrote; its first fault is an exception.

    Raises BadRecordError for what only fills time or memory, and what ASE raises otherwise.
    """
    _refuse_impossible_counts(content)
    yield from _parsed(content)


def _parsed(content: bytes) -> Iterator[Atoms]:
    text = content.decode()
    header = partial(_header, largest=len(text))
    with io.StringIO(text) as file:
        yield from ase.io.iread(file, ":", format="extxyz", properties_parser=header)
        if file.read().strip():
            raise SourceError(
                "is followed by a blank line, at which ASE stops reading, and then by more text",
                remedy="remove the blank line",
            )


def _refuse_impossible_counts(content: bytes) -> None:
    """Raise BadRecordError where a line announces more atoms than the text can hold.

    ASE would look for that many lines, for hours. The text is read as ASE reads it, so that no
    spelling of a number gets past.
    """
    text = content.decode()
    with io.StringIO(text) as file:
        line = file.readline()
        while line.strip():
            count = 0
            # what is no number is for ASE's own error to name
            with suppress(ValueError):
                count = int(line)
            if count > MAX_ATOMS:
                raise BadRecordError(_too_many(count), remedy=WRITE_AGAIN)
            if count < 0:
                raise BadRecordError(f"announces {count} atoms", remedy=WRITE_AGAIN)
            # each atom has a line, which has an end
            if count > len(text):
                raise BadRecordError(
                    f"has a line that announces {count} atoms, more than the file has letters",
                    remedy=WRITE_AGAIN,
                )
            # the comment, and the atoms
            for _ in range(count + 1):
                file.readline()
            line = file.readline()


def _too_many(count: int) -> str:
    return f"announces {count} atoms; at most {MAX_ATOMS:,} are read"


def _header(line: str, largest: int) -> dict[str, Any]:
    """ASE's reading of a comment line, but a stress or virial may also have six numbers, Voigt's.

    Raises BadRecordError for a key that is there twice, of which ASE keeps the last, and for more
    columns of `Properties` than `largest`, the letters of the text: ASE would list them until the
    memory is full.
    """
    found = plain_header(line)
    if found is None:
        for key in doubled_keys(line):
            raise _doubled(key)
        try:
            found = key_val_str_to_dict(line)
        except ValueError:
            found = _header_with_six_numbers(line)

    for key in TENSOR_KEYS:
        value = found.get(key)
        if isinstance(value, np.ndarray) and value.shape == (3, 3) and value.dtype.kind in "fi":
            # of a stress ASE drops the lower half
            check_symmetric(value, f"a {key}")

    properties = found.get("Properties")
    if isinstance(properties, str):
        # name, type and number of columns in turn, as in ASE's own reading
        counts = [int(count) for count in properties.split(":")[2::3]]
        if sum(counts) > largest:
            raise BadRecordError(
                f"announces {max(counts)} columns in Properties, more than the file has letters",
                remedy=WRITE_AGAIN,
            )
    return found


def doubled_keys(line: str) -> list[str]:
    """The keys that a comment line has more than once, outside of quotes and brackets."""
    counts = Counter(KEY.findall(QUOTED.sub(" ", line)))
    return [key for key, count in counts.items() if count > 1]


def _doubled(key: str) -> BadRecordError:
    return BadRecordError(
        f"has {key!r} twice in its comment line, and only one can be meant",
        remedy="remove the wrong one",
    )


def plain_header(line: str) -> dict[str, Any] | None:
    """What ASE's `key_val_str_to_dict` reads from a comment line; None for one that is not plain.

    ASE looks at each letter by itself, which takes as long as reading the atoms. Nearly all lines
    are pairs `key=word` and `key="some words"` without escapes, brackets and quotes in quotes.

    Raises BadRecordError for a key that is there twice.
    """
    if not line.isascii():
        return None
    found: dict[str, Any] = {}
    end = 0
    while end < len(line):
        # a search would look at the rest of the line once for each of its letters
        match = PLAIN_PAIR.match(line, end)
        if match is None:
            return None
        end = match.end()
        key, quoted, word = match.groups()
        value = _plain_value(word or quoted)
        if value is None or key.lower() == "uid":
            return None
        if key in found:
            raise _doubled(key)
        if key in TENSOR_KEYS or key == "Lattice":
            if not isinstance(value, np.ndarray) or value.shape != (9,):
                return None
            value = value.reshape((3, 3), order="F")
        found[key] = value
    return found or None


def _plain_value(text: str) -> Any:
    """A value as ASE reads it: numbers, truth values or text; None for what ASE has to look at."""
    words = text.replace(",", " ").split()
    # others cannot be numbers: n and i begin nan and inf
    if words and words[0][0] in "0123456789+-.nNiI":
        with suppress(ValueError, OverflowError):
            try:
                numbers = np.array(words, dtype=int)
            except (ValueError, OverflowError):
                numbers = np.array(words, dtype=float)
            return numbers[0] if len(numbers) == 1 else numbers
    if not words or text.startswith("_JSON "):
        return None
    if all(word in TRUTH_VALUES for word in words):
        truths = [TRUTH_VALUES[word] for word in words]
        return truths[0] if len(truths) == 1 else truths
    return text


def _header_with_six_numbers(line: str) -> dict[str, Any]:
    # under another name, ASE takes any number of them
    found: dict[str, Any] = key_val_str_to_dict(TENSOR_KEY.sub(r"_tensor_\1", line))
    for key in TENSOR_KEYS:
        value = found.pop(f"_tensor_{key}", None)
        if value is None:
            continue
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "fi" or numbers.shape not in ((6,), (9,)):
            raise BadRecordError(f"has a {key} that is not six or nine numbers", remedy=WRITE_AGAIN)
        found[key] = numbers if len(numbers) == 6 else numbers.reshape((3, 3), order="F")
    return found


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
        if starts is None:
            # enough to see that it is too long for ASE
            return file.read(MOST_UNKNOWN + 1)
        return file.read(-1 if stop is None else stop - start)


def _open(path: Path | str) -> IO[bytes]:
    if not str(path).lower().endswith(".gz"):
        return Path(path).open("rb")
    return io.BufferedReader(_Unpacked(Path(path)), UNPACKED_AT_ONCE)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to a limit that follows from the file's size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limit = MAX_UNPACKED * path.stat().st_size + UNPACKED_ALLOWANCE
        self.file = gzip.GzipFile(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        """Raises SourceError beyond the limit."""
        count = self.file.readinto(buffer)
        if self.file.tell() > self.limit:
            raise SourceError(
                f"unpacks to more than {self.limit} bytes, {MAX_UNPACKED} times its size and more",
                file=self.path,
                remedy="unpack it yourself if it is right",
            )
        return count

    def close(self) -> None:
        self.file.close()
        super().close()
