"""The registry of file formats that a source may have."""

from __future__ import annotations

from .ase_database import AseDatabase, AseJson
from .ase_files import AseFile
from .ase_lmdb import AseLmdb
from .extended_xyz import ExtendedXyz
from .parquet import Parquet
from .source_format import SourceFormat


# the first format that recognises a file's name reads it; AseFile recognises every name
FORMATS: tuple[SourceFormat, ...] = (
    Parquet(),
    ExtendedXyz(),
    AseDatabase(),
    AseJson(),
    AseLmdb(),
    AseFile(),
)

# file name endings for which a folder is searched
SUFFIXES: tuple[str, ...] = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)


def format_of(name: str) -> SourceFormat:
    """The format of a file or URL, judged by its name."""
    return next(kind for kind in FORMATS if kind.recognises(name))
