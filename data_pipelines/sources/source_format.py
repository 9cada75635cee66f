"""The interface of a file format, and the parts that a source is cut into.

To add a format, write a module with a subclass of `SourceFormat`, and add one line to `formats.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...core.addresses import without_query
from ..structure import BadRecordError
from .config import SourceConfig
from .records import Record


@dataclass(frozen=True)
class Part:
    """A piece of a source that can be read independently: records [first, last) of one file.

    Parts have a stable order and can be pickled, so any process can read any part.
    """

    name: str
    """File or URL."""

    first: int = 0
    """Index of the first record; in a database, a row id."""

    last: int | None = None
    """Index after the last record; None for the end of the file."""

    id_prefix: str | None = None
    """Prefix of default structure ids; None for the stem of the file's name."""

    split: str | None = None
    """The split that the file's name states; None if it states none."""


class SourceFormat(ABC):
    """Base class of the file formats that structures are read from."""

    suffixes: ClassVar[tuple[str, ...]]
    """File name endings by which files of this format are found in folders."""

    is_table: ClassVar[bool] = False
    """True for rows with named columns. In a table, the config may name geometry columns too, and
    `records` raises SourceError if a named column is missing. Other formats define the geometry
    themselves, and each record may have different columns.
    """

    def recognises(self, name: str) -> bool:
        """Whether this format reads the file or URL `name`, judging by its ending."""
        return without_query(name).lower().endswith(self.suffixes)

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """The parts of a file, of about `records_per_part` records each.

        By default, the whole file is one part. A format that can start reading in the middle of a
        file returns several parts, which the conversion then reads in parallel.
        """
        return [Part(name)]

    @abstractmethod
    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Yield the index and the record of everything in a part, in order.

        A record that cannot be read is yielded as a BadRecordError, and reading continues with the
        next one. Raises SourceError if the file cannot be read any further.
        """


def cut_into_parts(name: str, indices: Sequence[int], records_per_part: int) -> list[Part]:
    """Cut a file into parts of `records_per_part` records; the last part may be shorter.

    indices: index or row id of every record, ascending; there may be gaps.
    """
    parts = []
    for begin in range(0, len(indices), records_per_part):
        chunk = indices[begin : begin + records_per_part]
        parts.append(Part(name, chunk[0], chunk[-1] + 1))
    return parts
