"""Frames of extended xyz text, read by ASE, within limits that depend on the size of the text.

ASE trusts the counts that a file states. A line with an eleven-digit number of atoms would keep it
busy for hours, and a large number of columns would fill the memory.
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
# No electronic-structure method labels a larger cell. Without a limit, a compressed file of a few
# hundred kB could hold ten million identical lines.
MAX_ATOMS = 1_000_000
# A frame without atoms is an ordinary bad record, but takes only three characters: a compressed
# file of 60 kB could hold millions of them.
MAX_EMPTY = 1000
# ASE accepts only nine numbers for these keys
TENSOR_KEYS = ("stress", "virial")
TENSOR_KEY = re.compile(r"(?<!\S)(stress|virial)(?=\s*=)")
PLAIN_PAIR = re.compile(r"""([^\s"'{}\[\]\\=]+)=(?:"([^"\\]+)"|([^\s"'{}\[\]\\=]+))(?:\s+|$)""")
TRUTH_VALUES = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
# Quoted or bracketed text, which contains no keys. An unclosed quote extends to the end of the
# line, and a key must start at the beginning of a word. Both rules keep the searches linear in the
# length of the line.
QUOTED = re.compile(
    r""""(?:[^"\\]|\\(?:.|\Z))*(?:"|\Z)"""
    r"""|'(?:[^'\\]|\\(?:.|\Z))*(?:'|\Z)"""
    r"|\{[^{}]*\}|\[[^\[\]]*\]",
    re.DOTALL,
)
KEY = re.compile(r"(?<![^\s=])([^\s=]+)\s*=")
# Text compresses to about a tenth, and a thousand identical frames to a hundredth. A file that
# unpacks to more than MAX_UNPACKED times its size, plus an allowance (bytes) for small files, was
# made to fill the memory.
MAX_UNPACKED = 200
UNPACKED_ALLOWANCE = 16_000_000
UNPACKED_AT_ONCE = 1 << 20
# Bytes up to which ASE may read a text that is not a plain sequence of records, for example because
# its end is missing, to find out what is wrong. ASE needs six times as much memory.
MOST_UNKNOWN = 16 << 20


@dataclass(frozen=True)
class _Scan:
    """Where the records of a text begin, up to the first place where its structure is broken."""

    starts: list[int]
    """Byte offsets in the uncompressed text."""
    problem: str | None
    """What is wrong after these records; None if the whole text is well-formed."""


def record_starts(path: str) -> list[int] | None:
    """Byte offset of each record in the uncompressed text.

    None if the file is not a sequence of complete records; ASE then reads it from the beginning
    and finds out what is wrong. Raises BadRecordError for a record with more than MAX_ATOMS atoms,
    and SourceError for too many empty records or a gzip file that unpacks to far more than its
    size.
    """
    scan = _scan(path)
    return None if scan is None or scan.problem is not None else scan.starts


def _scan(path: str) -> _Scan | None:
    """Scan a file by the lines that count atoms; None if the file cannot be read."""
    try:
        state = Path(path).stat()
    except OSError:
        return None
    # the file's state is part of the cache key, because a rewritten file has other records
    return _scanned(path, state.st_ino, state.st_size, state.st_mtime_ns)


# needed when a file is cut into parts, and again by each process that reads a part
@lru_cache(maxsize=2)
def _scanned(path: str, *state: int) -> _Scan | None:
    """See `_scan`; `state` changes whenever the file does."""
    starts: list[int] = []
    offset = 0
    num_empty = 0
    try:
        with _open(path) as file:
            # the limit keeps an endless line from filling the memory; it is not a number anyway
            while line := file.readline(UNPACKED_AT_ONCE):
                if not line.strip() and _is_blank(file):
                    # blank lines at the end of the file are allowed
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
                # bytes of the comment line and of one line per atom
                lengths = list(map(len, islice(file, num_atoms + 1)))
                if len(lengths) <= num_atoms:
                    return _Scan(starts, f"ends before its {num_atoms} atoms do")
                starts.append(offset)
                offset += len(line) + sum(lengths)
    except (OSError, EOFError, zlib.error):
        return None
    return _Scan(starts, None)


def _is_blank(file: IO[bytes]) -> bool:
    """Whether the rest of the file is white space."""
    while chunk := file.read(UNPACKED_AT_ONCE):
        if chunk.strip():
            return False
    return True


def xyz_frames(path: Path, first: int = 0, last: int | None = None) -> Iterator[Atoms | Exception]:
    """Yield frames [first, last) of a file; `last` None means to the end.

    If the file is a sequence of complete records, a record that ASE cannot parse is yielded as the
    exception, and reading continues with the next one. Otherwise the exception is raised. The text
    of the frames is held in memory, because ASE seeks in it.

    Raises SourceError and BadRecordError as `record_starts` does, and for impossible counts.
    """
    starts = record_starts(str(path))
    text = _text(path, starts, first, last)
    if starts is None:
        if len(text) > MOST_UNKNOWN:
            raise _not_plain(path)
        _refuse_impossible_counts(text)
    # frames that were yielded before ASE failed
    num_parsed = 0
    try:
        # fast path: ASE parses all frames in one call
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

    # one of the remaining records is broken, so parse them one at a time
    places = [start - starts[first] for start in starts[first:last]]
    bounds = [*places[num_parsed:], len(text)]
    for start, stop in pairwise(bounds):
        try:
            yield from _parsed(text[start:stop])
        except Exception as error:
            yield error


def _not_plain(path: Path) -> SourceError:
    """The error for a malformed text that is too long to let ASE find out what is wrong."""
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
    """Yield all frames of an untrusted text, and raise an exception at the first fault.

    Raises BadRecordError for counts that would only waste time or memory, SourceError for text
    after a blank line, and otherwise whatever ASE raises.
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
    """Raise BadRecordError if a line states more atoms than the text can hold.

    ASE would spend hours looking for that many lines. The text is read exactly as ASE reads it, so
    that no spelling of a number escapes the check.
    """
    text = content.decode()
    with io.StringIO(text) as file:
        line = file.readline()
        while line.strip():
            count = 0
            # a line that is not a number is left to ASE's own error message
            with suppress(ValueError):
                count = int(line)
            if count > MAX_ATOMS:
                raise BadRecordError(_too_many(count), remedy=WRITE_AGAIN)
            if count < 0:
                raise BadRecordError(f"announces {count} atoms", remedy=WRITE_AGAIN)
            # each atom needs a line, so at least one character
            if count > len(text):
                raise BadRecordError(
                    f"has a line that announces {count} atoms, more than the file has letters",
                    remedy=WRITE_AGAIN,
                )
            # skip the comment line and the atoms
            for _ in range(count + 1):
                file.readline()
            line = file.readline()


def _too_many(count: int) -> str:
    return f"announces {count} atoms; at most {MAX_ATOMS:,} are read"


def _header(line: str, largest: int) -> dict[str, Any]:
    """Parse a comment line as ASE does, but also accept a stress or virial in Voigt form (6,).

    Raises BadRecordError for a key that occurs twice (ASE would keep the last one), for a stress or
    virial that is not symmetric, and if `Properties` states more than `largest` columns, the
    number of characters in the text (ASE would list them until the memory is full).
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
            # ASE would silently drop the lower triangle of a stress
            check_symmetric(value, f"a {key}")

    properties = found.get("Properties")
    if isinstance(properties, str):
        # triples of name, type and number of columns, as ASE reads them
        counts = [int(count) for count in properties.split(":")[2::3]]
        if sum(counts) > largest:
            raise BadRecordError(
                f"announces {max(counts)} columns in Properties, more than the file has letters",
                remedy=WRITE_AGAIN,
            )
    return found


def doubled_keys(line: str) -> list[str]:
    """The keys that occur more than once in a comment line, outside quotes and brackets."""
    counts = Counter(KEY.findall(QUOTED.sub(" ", line)))
    return [key for key, count in counts.items() if count > 1]


def _doubled(key: str) -> BadRecordError:
    return BadRecordError(
        f"has {key!r} twice in its comment line, and only one can be meant",
        remedy="remove the wrong one",
    )


def plain_header(line: str) -> dict[str, Any] | None:
    """A fast version of ASE's `key_val_str_to_dict` for plain comment lines; None for others.

    ASE parses a comment line character by character, which takes as long as reading the atoms.
    Nearly all lines are pairs `key=word` and `key="some words"`, without escapes, brackets or
    nested quotes. This function parses such lines and leaves all others to ASE.

    Raises BadRecordError for a key that occurs twice.
    """
    if not line.isascii():
        return None
    found: dict[str, Any] = {}
    end = 0
    while end < len(line):
        # match() and not search(), which would rescan the rest of the line at every character
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
    """A value as ASE reads it: numbers, booleans or text; None if it must be left to ASE."""
    words = text.replace(",", " ").split()
    # only these characters can begin a number; n and i begin nan and inf
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
    # under another key, ASE accepts any number of values
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
    """The uncompressed text of frames [first, last)."""
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
            # one byte more than the limit shows that the text is too long
            return file.read(MOST_UNKNOWN + 1)
        return file.read(-1 if stop is None else stop - start)


def _open(path: Path | str) -> IO[bytes]:
    if not str(path).lower().endswith(".gz"):
        return Path(path).open("rb")
    return io.BufferedReader(_Unpacked(Path(path)), UNPACKED_AT_ONCE)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to a limit that depends on the file's size."""

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
        """Read uncompressed bytes into `buffer`; raises SourceError beyond the limit."""
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
