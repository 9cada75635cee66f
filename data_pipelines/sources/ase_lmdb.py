"""ASE databases in LMDB (`.aselmdb`), the format of OMat24, OMol25 and OC20."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ...core.errors import MissingPackageError
from .ase_database import AseDatabase, OpenDatabase
from .locations import SourceError


class AseLmdb(AseDatabase):
    """Rows of an ASE database that is stored in LMDB."""

    suffixes = (".aselmdb",)

    def open(self, path: Path, stack: ExitStack) -> OpenDatabase:
        """Open a database read-only.

        Raises MissingPackageError without ase-db-backends, and SourceError if the file states more
        rows than it has.
        """
        try:
            import lmdb
            from ase_db_backends.aselmdb import LMDBDatabase
        except ImportError:
            raise MissingPackageError(
                "ase-db-backends", needed_for="reading .aselmdb files", extra="lmdb"
            ) from None

        # The backend's destructor prints a message if the file could not be opened. Opening the
        # file with lmdb first raises an exception and prints nothing.
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as opened:
            num_entries = opened.stat()["entries"]

        database = LMDBDatabase(path, readonly=True, use_lock_file=False)
        stack.callback(database.close)
        # the number of rows is stated in the file, and even a small file may state a billion
        if len(database.ids) > num_entries:
            raise SourceError(
                f"states {len(database.ids):,} rows and has {num_entries:,} entries",
                remedy="write the structures into a new database",
            )
        return sorted(database.ids), database._get_row
