"""What a file format must offer, and the parts that a source is cut into.

A new format is one module with a subclass of `SourceFormat`, and one line in `formats.py`.
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
    """A piece of a source that can be read on its own: records [first, last) of one file.

    Parts come in a stable order, and can be pickled, so that any process may read any of them.
    """

    name: str
    """File or URL, as messages show it."""

    first: int = 0
    """Index of the first record; in a database, a row id."""

    last: int | None = None
    """Index after the last record; None means to the end of the file."""

    id_prefix: str | None = None
    """What default ids of the records begin with; None for the stem of the file's name."""

    split: str | None = None
    """The split that the names of the source's files state."""


class SourceFormat(ABC):
    """One kind of file that structures are read from."""

    suffixes: ClassVar[tuple[str, ...]]
    """How the names of such files end. Folders are searched for them."""

    is_table: ClassVar[bool] = False
    """Rows with named columns: the config names those of the geometry too, and `records` itself
    raises SourceError when one of the named columns is missing. For other formats the reader
    finds the geometry, and the columns are looked for in the records.
    """

    def recognises(self, name: str) -> bool:
        """Whether this format reads a file of that name."""
        return without_query(name).lower().endswith(self.suffixes)

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """The parts of a file, of about `records_per_part` records each.

        By default the file is one part. A format that can start in the middle of a file returns
        more, and the conversion then reads them in parallel.
        """
        return [Part(name)]

    @abstractmethod
    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Index and record of everything in a part.

        A record that cannot be read comes as its error, and those after it follow. Raises
        SourceError when the file as a whole cannot be read any further.
        """


def cut_into_parts(name: str, indices: Sequence[int], records_per_part: int) -> list[Part]:
    """Parts of `records_per_part` records, the last one shorter; `indices` ascend."""
    # half-open ranges of indices, which leave out nothing between two indices
    parts = []
    for begin in range(0, len(indices), records_per_part):
        chunk = indices[begin : begin + records_per_part]
        parts.append(Part(name, chunk[0], chunk[-1] + 1))
    return parts
