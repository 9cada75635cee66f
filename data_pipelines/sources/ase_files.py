"""Files that ASE reads from beginning to end: .traj, and all that no other format recognises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import filetype

from ...core.errors import EvenfieldError
from ...core.memory import items_within_memory, memory_for_file
from ..structure import BadRecordError
from .cif import cif_frames
from .config import SourceConfig
from .locations import SourceError, local_file, require_readable
from .magres import refuse_open_blocks
from .records import Record, flat_columns
from .source_format import Part, SourceFormat
from .xyz_frames import xyz_frames


# ASE's database formats -> the file name ending with which `ase_database.py` reads them
DATABASES = {"db": ".db", "json": ".json"}
# occupancy above which a site counts as full; files round values such as 1/3
FULL = 0.98
WHOLE_ATOMS = "write a structure with whole atoms, such as an ordered or random supercell"


class AseFile(SourceFormat):
    """A file whose format ASE detects; it is read as a whole."""

    # folders are searched for these endings only; a file named explicitly may have any name
    suffixes = (".traj",)

    def recognises(self, name: str) -> bool:
        """Always True, because ASE detects the format from the content of the file."""
        return True

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Yield the index and record of each frame; see `SourceFormat.records`."""
        with local_file(part.name) as path:
            require_content(path, part.name)
            yield from records_of_frames(part, _frames(path))


def _frames(path: Path) -> Iterator[Atoms | Exception]:
    """Yield all frames of a file whose format ASE detects."""
    kind = filetype(str(path))
    if kind in DATABASES:
        # ASE would read plain structures only, without levels of theory, splits and labels
        raise SourceError(
            "is an ASE database in another container",
            remedy=f"unpack it into a file whose name ends in {DATABASES[kind]}",
        )
    # the limits for xyz files apply whatever the file is called
    if kind == "extxyz":
        yield from xyz_frames(path)
        return
    if kind == "magres":
        refuse_open_blocks(path)
    frames = cif_frames(path) if kind == "cif" else ase.io.iread(path, ":")
    for atoms in items_within_memory(frames, path.stat().st_size):
        problem = partial_occupancy(atoms)
        yield BadRecordError(problem, remedy=WHOLE_ATOMS) if problem else atoms


def partial_occupancy(atoms: Atoms) -> str | None:
    """Describe the partially occupied sites of a structure; None if there are none.

    ASE keeps only the most frequent element of a shared site, and fills sites that are partially
    empty. Such a structure would have the wrong composition. CIF files state occupancies by kind of
    site, PDB files by atom. Some programs write 0 in a PDB file if they do not know the occupancy.
    """
    kinds = atoms.info.get("occupancy")
    if isinstance(kinds, dict):
        for site in kinds.values():
            if isinstance(site, dict) and (len(site) > 1 or sum(site.values()) < FULL):
                shares = ", ".join(f"{symbol} {share:g}" for symbol, share in site.items())
                return f"has a site that is not fully occupied ({shares})"
    occupancy = atoms.arrays.get("occupancy")
    if occupancy is not None and np.issubdtype(occupancy.dtype, np.number):
        partial = np.flatnonzero((occupancy > 0) & (occupancy < FULL))
        if len(partial):
            first = partial[0]
            return (
                f"has {len(partial)} sites that are not fully occupied "
                f"({atoms.symbols[first]} {occupancy[first]:g})"
            )
    return None


def read_one(path: Path) -> Atoms:
    """Read the last structure of a file. Raises SourceError if ASE cannot read it."""
    require_readable(path)
    frame: Atoms | Exception | None = None
    try:
        kind = filetype(str(path))
        if kind != "extxyz":
            with memory_for_file(path.stat().st_size):
                atoms = _last(path, kind)
            problem = partial_occupancy(atoms)
            if problem:
                raise SourceError(problem, remedy=WHOLE_ATOMS)
            return atoms
        for frame in xyz_frames(path):
            if isinstance(frame, Exception):
                break
        if isinstance(frame, Atoms):
            return frame
        raise frame or empty_file(str(path))
    except SourceError as error:
        error.file = str(path)
        raise
    except Exception as error:
        # ASE's readers raise all kinds of errors on a broken file
        raise SourceError(
            f"cannot be read as a structure ({describe(error)})",
            file=path,
            remedy="name a file in a format that ASE reads",
        ) from None


def _last(path: Path, kind: str) -> Atoms:
    """Read the last structure of a file of the format `kind`, as ASE detected it."""
    if kind == "magres":
        refuse_open_blocks(path)
    if kind in DATABASES:
        # imported here, because that module imports this one
        from .ase_database import last_structure

        return last_structure(path, kind)
    if kind != "cif":
        # without an index, ASE returns the last structure and not a list
        return ase.io.read(path)  # type: ignore[return-value]
    last: Atoms | None = None
    for atoms in cif_frames(path):
        last = atoms
    if last is None:
        raise empty_file(str(path))
    return last


def read_frames(path: Path) -> list[Atoms]:
    """Read all structures of a file.

    Raises SourceError or BadRecordError, with the index of the record, if one cannot be read.
    """
    require_readable(path)
    frames: list[Atoms] = []
    try:
        for frame in _frames(path):
            if isinstance(frame, Exception):
                raise frame
            frames.append(frame)
    except EvenfieldError as error:
        error.file = str(path)
        error.record = len(frames)
        raise
    except Exception as error:
        # ASE's readers raise all kinds of errors on a broken file
        raise SourceError(
            f"cannot be read as structures ({describe(error)})",
            file=path,
            record=len(frames),
            remedy="name a file in a format that ASE reads",
        ) from None
    if not frames:
        raise empty_file(str(path))
    return frames


def record_from_atoms(atoms: Atoms) -> Record:
    """Make a record of ase.Atoms; the results of its calculator are its recognised labels."""
    results = {} if atoms.calc is None else atoms.calc.results
    return Record(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        info=flat_columns(atoms.info),
        arrays=atoms.arrays,
        recognised=results,
    )


def records_of_frames(
    part: Part, frames: Iterator[Atoms | Exception]
) -> Iterator[tuple[int, Record | BadRecordError]]:
    """Yield the index and record of each frame of a part.

    A frame that is an exception becomes a BadRecordError. Raises SourceError, with file and record,
    if reading breaks off or if there are no frames.
    """
    index = part.first - 1
    try:
        for index, frame in enumerate(frames, part.first):
            if isinstance(frame, BadRecordError):
                yield index, frame
            elif isinstance(frame, Exception):
                yield index, unreadable(frame)
            else:
                yield index, record_from_atoms(frame)
    except SourceError as error:
        error.file = part.name
        # a reader that scanned ahead knows the record better
        if error.record is None:
            error.record = index
        raise
    except BadRecordError as error:
        # the reader cannot tell where the next record begins
        raise SourceError(
            error.message, file=part.name, record=index + 1, remedy=error.remedy
        ) from None
    except MemoryError as error:
        raise SourceError(
            f"cannot be read ({describe(error)})",
            file=part.name,
            record=index + 1,
            remedy="write it again",
        ) from None
    except Exception as error:
        # ASE's readers raise all kinds of errors on a broken file
        raise SourceError(
            f"cannot be read ({describe(error)})",
            file=part.name,
            record=index + 1,
            remedy="fetch or write the file again: it is cut off there, or in a format that ASE "
            "does not read",
        ) from None
    if index < part.first:
        raise empty_file(part.name)


def unreadable(error: Exception) -> BadRecordError:
    """The BadRecordError for a record on which a reader failed with `error`."""
    return BadRecordError(f"cannot be read ({describe(error)})", remedy="write it again")


def require_content(path: Path, name: str) -> None:
    """Raise SourceError for a file that is missing, not readable or empty.

    name: the source as the user named it, for the message.
    """
    require_readable(path)
    if path.stat().st_size == 0:
        raise empty_file(name)


def empty_file(name: str) -> SourceError:
    """The error for a file without any structures."""
    return SourceError("contains no structures", file=name, remedy="write the file again")


def describe(error: Exception) -> str:
    """Describe a library's exception in one line.

    The class name is included, because some messages (such as KeyError's) mean little without it.
    """
    if isinstance(error, MemoryError):
        return "it takes far more memory than a file of its size should"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
