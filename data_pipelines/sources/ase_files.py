"""Files that ASE reads -> records: (ext)xyz, traj and the like whole, `.db` and `.aselmdb` by ranges of ids."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import ase.db
import ase.io
from ase import Atoms
from ase.calculators.calculator import all_properties

from ..structure import BadRecordError
from .config import GEOMETRY, SourceConfig
from .extended_xyz import is_xyz, xyz_frames
from .locations import require_readable
from .records import Record


DATABASES = (".db", ".aselmdb")


def record_from_atoms(atoms: Atoms) -> Record:
    """ase.Atoms with its labels; what its calculator holds is in ASE's units, which are ours."""
    results = atoms.calc.results if atoms.calc is not None else {}
    return Record(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        atoms.info,
        atoms.arrays,
        recognised=results,
    )


def read_one(path: Path) -> Atoms:
    """The last structure of a file that ASE reads; ValueError names the file when it cannot."""
    try:
        return ase.io.read(path)  # type: ignore[return-value]
    except Exception as error:  # ASE's readers raise anything
        raise ValueError(
            f"{path}: cannot be read as a structure: {type(error).__name__}: {error}"
        ) from None


def refuse_geometry_columns(name: str, config: SourceConfig) -> None:
    """Raise BadRecordError when a config for tables is used on a file whose geometry ASE reads."""
    for field in GEOMETRY:
        if field in config.columns:
            raise BadRecordError(
                f"{name}: columns.{field} is for Parquet and hub data sets, ASE reads {field} itself: remove the key"
            )


def iter_file(
    path: Path, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Index and record of frames [first, last) of a file that ase.io reads; errors name the file and the record.

    An xyz record that cannot be parsed, among others whose places are known, comes as its error.
    """
    _check_readable(path)
    index = first - 1
    try:
        frames = xyz_frames(path, first, last) if is_xyz(path) else ase.io.iread(path, ":")
        for index, atoms in enumerate(frames, first):
            yield (
                index,
                _unreadable(atoms) if isinstance(atoms, Exception) else record_from_atoms(atoms),
            )
    except BadRecordError as error:
        raise BadRecordError(f"{path}: after record {index} {error}") from None
    except Exception as error:  # ASE's readers raise anything on a broken file
        raise BadRecordError(
            f"{path}: record {index + 1} cannot be read: {type(error).__name__}: {error}; "
            "the file is cut off there or not in a format that ASE reads"
        ) from None
    if index < first:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")


def _unreadable(error: Exception) -> BadRecordError:
    return BadRecordError(
        f"cannot be read: {type(error).__name__}: {error}; write it again or set skip_bad=true"
    )


def _check_readable(path: Path) -> None:
    require_readable(path)
    if path.stat().st_size == 0:
        raise BadRecordError(f"{path}: holds no structures: the file is empty, write it again")


# --- databases


def row_ids(path: Path) -> list[int]:
    """The row ids of a database, ascending."""
    with _open_database(path) as (ids, _):
        return ids


def iter_rows(
    path: Path, first: int, last: int | None
) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Row id and record of the rows with first <= id < last, or what is wrong with a row that cannot be read.

    Key-value pairs and `data` are columns.
    """
    with _open_database(path) as (ids, get_row):
        for row_id in ids:
            if row_id < first or (last is not None and row_id >= last):
                continue
            try:
                record: Record | BadRecordError = _record_from_row(get_row(row_id))
            except Exception as error:  # zlib, json, struct, sqlite3: whatever a torn row leads to
                record = _unreadable(error)
            yield row_id, record


def _record_from_row(row: Any) -> Record:
    results = {key: row[key] for key in all_properties if key in row}
    columns = {**dict(row.data), **row.key_value_pairs}
    return Record(
        row.numbers, row.positions, row.cell, row.pbc, columns, columns, recognised=results
    )


@contextmanager
def _open_database(path: Path) -> Iterator[tuple[list[int], Callable[[int], Any]]]:
    """The ids of a database and a function that gets one row; nothing is written to the file."""
    _check_readable(path)
    with ExitStack() as stack:
        try:
            ids, get_row = (_open_lmdb if path.suffix == ".aselmdb" else _open_sqlite)(path, stack)
        except BadRecordError:
            raise
        except Exception as error:
            raise BadRecordError(
                f"{path}: cannot be read as a database ({type(error).__name__}: {error}): fetch or write it again"
            ) from None
        yield ids, get_row


def _open_sqlite(path: Path, stack: ExitStack) -> tuple[list[int], Callable[[int], Any]]:
    # ids are asked for beside ASE, which would parse every row, and make its tables in a file that lacks them
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM systems ORDER BY id")]
    database = stack.enter_context(
        ase.db.connect(path, type="db", use_lock_file=False)
    )  # one connection for all rows
    return ids, lambda row_id: database.get(id=row_id)


def _open_lmdb(path: Path, stack: ExitStack) -> tuple[list[int], Callable[[int], Any]]:
    try:
        import lmdb
        from ase_db_backends.aselmdb import LMDBDatabase
    except ImportError:
        raise BadRecordError(
            f"{path}: needs ase-db-backends: pip install 'evenfield[lmdb]'"
        ) from None
    # opened once by itself, as the backend's destructor complains aloud about a file that it could not open
    lmdb.open(str(path), subdir=False, readonly=True, lock=False).close()
    database = LMDBDatabase(path, readonly=True, use_lock_file=False)
    stack.callback(database.close)
    return sorted(database.ids), database._get_row
