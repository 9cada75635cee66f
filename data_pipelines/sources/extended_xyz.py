"""Plain and extended xyz files, optionally gzipped; large files are cut and read in parallel."""

from __future__ import annotations

from collections.abc import Iterator

from ..structure import BadRecordError
from .ase_files import records_of_frames, require_content
from .config import SourceConfig
from .locations import is_url, local_file, plain_path
from .records import Record
from .source_format import Part, SourceFormat, cut_into_parts
from .xyz_frames import record_starts, xyz_frames


class ExtendedXyz(SourceFormat):
    """Text frames, each of which begins with a line that states its number of atoms."""

    suffixes = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")

    def parts(self, name: str, records_per_part: int) -> list[Part]:
        """Ranges of records of a local file; a remote file is downloaded and read as one part."""
        if is_url(name):
            return [Part(name)]
        starts = record_starts(str(plain_path(name)))
        if not starts:
            return [Part(name)]
        return cut_into_parts(name, range(len(starts)), records_per_part)

    def records(
        self, part: Part, config: SourceConfig
    ) -> Iterator[tuple[int, Record | BadRecordError]]:
        """Yield the index and record of each frame; see `SourceFormat.records`."""
        with local_file(part.name) as path:
            require_content(path, part.name)
            yield from records_of_frames(part, xyz_frames(path, part.first, part.last))
