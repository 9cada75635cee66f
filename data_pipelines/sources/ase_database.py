"""ASE databases in SQLite (`.db`), read by ranges of row ids, and in JSON (`.json`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import ase.db
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties

from ...core.addresses import without_query
from ...core.errors import EvenfieldError
from ...core.memory import items_within_memory, memory_for_file
from ..structure import BadRecordError
from .ase_files import describe, require_content, unreadable
from .config import SourceConfig
from .locations import SourceError, is_url, local_file, plain_path
from .records import Record, flat_columns
from .source_format import Part, SourceFormat, cut_into_parts


OpenDatabase = tuple[list[int], Callable[[int], Any]]
"""Row ids, ascending, and a function that returns the row with a given id."""


class AseDatabase(SourceFormat):
    """ASE databases in SQLite.

    Labels come from a row's calculator. Its key-value pairs and the entries of `data` are columns.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".db",)

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """Ranges of row ids of a local file; a remote file is downloaded and read as one part."""
        if is_url(name):
            return [Part(name)]
        with self._opened(plain_path(name), name) as (ids, _):
            return cut_into_parts(name, ids, records_per_part)

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Yield the id and record of each row; see `SourceFormat.records`."""
        with local_file(part.name) as path, self._opened(path, part.name) as (ids, get_row):
            rows = _rows(part, ids, get_row)
            yield from items_within_memory(rows, path.stat().st_size)

    def open(self, path: Path, stack: ExitStack) -> OpenDatabase:
        """Open a database read-only; whatever must be closed later is put on the stack."""
        # ASE would parse every row to list the ids, and would create missing tables in the file
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            _refuse_programs(connection)
            ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]

        # as a context manager, ASE's database keeps one connection for all rows
        database = stack.enter_context(ase.db.connect(path, type="db", use_lock_file=False))
        return ids, lambda row_id: database.get(id=row_id)

    @contextmanager
    def _opened(self, path: Path, name: str) -> Iterator[OpenDatabase]:
        """Call `open`, and raise errors as SourceError with the name of the source."""
        require_content(path, name)
        with ExitStack() as stack:
            try:
                with memory_for_file(path.stat().st_size):
                    ids, get_row = self.open(path, stack)
            except SourceError as error:
                error.file = name
                raise
            except EvenfieldError:
                raise
            except Exception as error:
                raise SourceError(
                    f"cannot be read as a database ({describe(error)})",
                    file=name,
                    remedy="fetch or write it again",
                ) from None
            yield ids, get_row


class AseJson(AseDatabase):
    """ASE databases in a single JSON file, which `ase.io.write` also writes."""

    # folders contain JSON files of many kinds, so they are not searched for them
    suffixes: ClassVar[tuple[str, ...]] = ()

    def recognises(self, name: str) -> bool:
        """Whether the name ends in .json. Such files are read only if named explicitly."""
        return without_query(name).lower().endswith(".json")

    def open(self, path: Path, stack: ExitStack) -> OpenDatabase:
        """Read the whole file once, because ASE would parse it again for each row."""
        database = ase.db.connect(path, type="json", use_lock_file=False)
        rows = {row.id: row for row in database.select()}
        return sorted(rows), rows.__getitem__


def last_structure(path: Path, kind: str) -> Atoms:
    """The structure in the last row of a database of ASE's kind `db` or `json`.

    Raises SourceError for a database without rows, and for one with computed content.
    """
    source = AseDatabase() if kind == "db" else AseJson()
    with ExitStack() as stack:
        ids, get_row = source.open(path, stack)
        if not ids:
            raise SourceError("is a database without rows", file=path)
        atoms: Atoms = get_row(ids[-1]).toatoms()
    return atoms


def _rows(
    part: Part, ids: list[int], get_row: Callable[[int], Any]
) -> Iterator[tuple[int, Record | BadRecordError]]:
    # ids may have gaps where rows were deleted
    for row_id in ids:
        if row_id < part.first or (part.last is not None and row_id >= part.last):
            continue
        try:
            record: Record | BadRecordError = _record_from_row(get_row(row_id))
        except Exception as error:
            # a damaged row can fail anywhere in zlib, json, struct or sqlite3
            record = unreadable(error)
        yield row_id, record


def _refuse_programs(connection: sqlite3.Connection) -> None:
    """Raise SourceError for a database that computes its content instead of storing it.

    Views can produce unlimited rows, and generated columns unlimited values, from a small file. A
    genuine ASE database has neither.
    """
    objects = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, sql in objects:
        is_stored = kind in ("table", "index")
        if kind == "table":
            is_virtual = str(sql).upper().lstrip().startswith("CREATE VIRTUAL")
            # the last value of a row is above 1 for a generated column
            quoted = str(name).replace('"', '""')
            columns = connection.execute(f'PRAGMA table_xinfo("{quoted}")').fetchall()
            is_stored = not is_virtual and all(column[-1] <= 1 for column in columns)
        if not is_stored:
            raise SourceError(
                f"has a {kind} '{name}' that computes what it shows, which no ASE database has",
                remedy="write the structures into a new database",
            )


def _record_from_row(row: Any) -> Record:
    # a database does not distinguish per-structure from per-atom values
    columns = {**dict(row.data), **row.key_value_pairs}
    return Record(
        # a JSON database may hold plain lists
        atomic_numbers=np.asarray(row.numbers),
        positions=np.asarray(row.positions),
        cell=np.asarray(row.cell),
        pbc=np.asarray(row.pbc),
        info=flat_columns(columns),
        arrays=columns,
        recognised={key: row[key] for key in all_properties if key in row},
    )
