"""ASE databases in LMDB (`.aselmdb`), as OMat24, OMol25 and OC20 are published."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ...core.errors import MissingPackageError
from .ase_database import AseDatabase, OpenDatabase
from .locations import SourceError


class AseLmdb(AseDatabase):
    """The rows of an ASE database, in another container."""

    suffixes = (".aselmdb",)

    def open(self, path: Path, stack: ExitStack) -> OpenDatabase:
        """Open a database for reading only; MissingPackageError without ase-db-backends."""
        try:
            import lmdb
            from ase_db_backends.aselmdb import LMDBDatabase
        except ImportError:
            raise MissingPackageError(
                "ase-db-backends", needed_for="reading .aselmdb files", extra="lmdb"
            ) from None

        # The destructor of the backend prints a complaint about a file that it could not open.
        # lmdb itself, tried first, only raises.
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as opened:
            num_entries = opened.stat()["entries"]

        database = LMDBDatabase(path, readonly=True, use_lock_file=False)
        stack.callback(database.close)
        # the file states how many rows it has, and a small one may state a billion
        if len(database.ids) > num_entries:
            raise SourceError(
                f"states {len(database.ids):,} rows and has {num_entries:,} entries",
                remedy="write the structures into a new database",
            )
        return sorted(database.ids), database._get_row
