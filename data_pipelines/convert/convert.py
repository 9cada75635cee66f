"""Any source becomes a data set: Parquet shards with dataset_info.json and census.json.

The parts of the source are staged one by one, in parallel (`staging.py`). Then they are cut into
shards (`finish.py`). The info file is written last, so a folder without it is an unfinished
conversion, and the same call continues with the parts that are not staged yet.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from pydantic import Field, field_validator
from rich.progress import track

from ...core.addresses import local_path, without_secrets
from ...core.files import FileError
from ...core.settings import SettingsError
from ...core.workers import worker_pool
from ..checks.unit_check import refuse_suspicious_units
from ..sources.config import SourceConfig
from ..sources.label_tally import LabelTally, to_json
from ..sources.read import (
    RECORDS_PER_PART,
    Count,
    check_columns_exist,
    list_parts,
    read_part,
    source_fingerprint,
)
from ..sources.records import Record
from ..sources.source_format import Part
from ..store.shards import SHARD_SIZE, BrokenDataSetError, read_info
from ..structure import BadRecordError, Structure
from .finish import ConversionError, Map, finish
from .staging import FOLDER, StagedPart, conversion_key, read_staged, stage, staged_path


# The files that a conversion writes, under their final and their temporary names. It removes
# stale ones of these, and nothing else in its folder.
OWN_FILE = re.compile(
    r"\.?("
    r"(train|valid|test)-\d{5}\.parquet"
    r"|(dataset_info|census)\.json"
    r"|(rejected|duplicates)\.jsonl"
    r")(\.tmp\d+)?"
)

# Settings that data sets of earlier versions do not state.
LATER_KEYS = ("unstated_level", "reference_columns")

CONTINUE = "run the same command again, it continues with the parts that are not finished"


class ConvertConfig(SourceConfig):
    """How a source becomes a data set: its columns, and how it is split."""

    valid_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the groups held out for validation"
    )
    test_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the groups held out for testing"
    )
    licence: str = Field(default="not stated", description="licence of the data, for the card")
    description: str = Field(default="", description="where the data come from, for the card")
    with_elements: list[str] = Field(
        default=[], description="keep only structures with at least one of these elements"
    )
    without_elements: list[str] = Field(
        default=[], description="leave out structures with any of these elements"
    )
    hold_out_pairs: list[tuple[str, str]] = Field(
        default=[],
        description="pairs of elements; structures with both are for testing, whatever their group",
    )
    skip_bad: bool = Field(
        default=False, description="list bad records in rejected.jsonl and continue"
    )

    @field_validator("with_elements", "without_elements")
    @classmethod
    def _check_symbols(cls, symbols: list[str]) -> list[str]:
        unknown = [symbol for symbol in symbols if symbol not in chemical_symbols[1:]]
        if unknown:
            raise ValueError(f"{', '.join(map(str, unknown))}: not an element symbol")
        return symbols

    @field_validator("hold_out_pairs")
    @classmethod
    def _check_pairs(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        cls._check_symbols([symbol for pair in pairs for symbol in pair])
        return pairs


def convert(
    source: Path | str,
    out: Path | str,
    config: ConvertConfig,
    *,
    workers: int | None = None,
    task: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    """Convert a source into the folder `out`; returns the content of its dataset_info.json.

    workers: number of processes, by default one per core. The result does not depend on it.
    task: (k, n) stages every n-th part, beginning with the k-th of 1..n, and returns None. When
        all tasks have run, in any order and on any machine, the call without a task finishes.

    A finished conversion of the same bytes with the same config is left as it is.

    Raises SourceError for a source that cannot be read, BadRecordError for a bad record (unless
    `skip_bad`), UnitError for labels that look wrong, FileError when `out` cannot be written and
    ConversionError when nothing is left to train on. Shards under their final names are whole
    even then.
    """
    source = str(source)
    out = Path(out)
    if out.is_file():
        raise FileError("is a file", file=out, remedy="name a folder for the data set")
    if task is not None and not 1 <= task[0] <= task[1]:
        raise SettingsError(
            f"task={task[0]}/{task[1]}: the first number is one of 1..{max(task[1], 1)}"
        )

    # first what takes seconds: misspelt columns, a finished conversion, wrong units
    check_columns_exist(source, config)
    origin = _origin(source, config)
    finished = _finished(out, origin)
    if finished is not None:
        return finished
    if not config.trust_units:
        refuse_suspicious_units(source, config)

    parts = list_parts(source, config, RECORDS_PER_PART)
    job = _Job(out, conversion_key(origin, parts), config)
    with _interruptions(out), ExitStack() as stack:
        _mark_unfinished(out)
        numbers = range(len(parts))
        if task is not None:
            numbers = numbers[task[0] - 1 :: task[1]]
        missing = [
            (number, parts[number])
            for number in numbers
            if read_staged(staged_path(out, number), job.key) is None
        ]

        # a pool takes a second to start, which a small source does not need
        run: Map = map
        if len(missing) > 1 and workers != 1:
            run = stack.enter_context(worker_pool(workers)).map
        staged = run(job.stage, missing)
        title = f"converting {origin['file']}"
        for _ in track(staged, title, total=len(missing), transient=True):
            pass

        if task is not None:
            return None
        return _finish(out, job, len(parts), origin, run)


def write_data_set(
    structures: Iterable[Structure], out: Path, origin: dict[str, Any], config: ConvertConfig
) -> dict[str, Any]:
    """Write checked structures as a data set, in the way in which `convert` writes a source.

    origin: what dataset_info.json says about the source; `file` and `sha256` are required.
    """
    job = _Job(out, conversion_key(origin, []), config)
    remaining = iter(structures)
    num_parts = 0
    with _interruptions(out):
        _mark_unfinished(out)
        while chunk := list(islice(remaining, RECORDS_PER_PART)):
            numbered = enumerate(chunk, num_parts * RECORDS_PER_PART)
            job.stage_records(num_parts, numbered, origin["file"])
            num_parts += 1
        return _finish(out, job, num_parts, origin, map)


@dataclass(frozen=True)
class _Job:
    """What a process needs to know in order to stage a part; it is pickled."""

    out: Path
    key: str
    config: ConvertConfig

    def stage(self, numbered: tuple[int, Part]) -> None:
        index, part = numbered
        tally = LabelTally()

        def count(record: Record, structure: Structure) -> None:
            if _has_wanted_elements(structure, self.config):
                tally.add(record, structure, self.config)

        records = enumerate(_read(part, self.config, count), part.first)
        self.stage_records(index, records, part.name, tally)

    def stage_records(
        self,
        index: int,
        records: Iterable[tuple[int, Structure | BadRecordError | None]],
        file: str,
        tally: LabelTally | None = None,
    ) -> None:
        staged = StagedPart(self.key, file)
        if tally is not None:
            # filled while the records are read, and written after the last of them
            staged.labels = to_json(tally)
        stage(
            records,
            staged_path(self.out, index),
            staged,
            split_of=lambda structure: assign_split(structure, self.config),
            wanted=lambda structure: _has_wanted_elements(structure, self.config),
            skip_bad=self.config.skip_bad,
        )


def _read(
    part: Part, config: ConvertConfig, count: Count
) -> Iterator[Structure | BadRecordError | None]:
    try:
        yield from read_part(part, config, count)
    except OSError as error:
        # a network or a disk that disappeared in the middle
        raise FileError(f"reading failed ({error})", file=part.name, remedy=CONTINUE) from error


@contextmanager
def _interruptions(out: Path) -> Iterator[None]:
    """What stops a conversion from outside, with a remedy."""
    try:
        yield
    except BrokenProcessPool:
        raise ConversionError(
            "a worker process was killed, perhaps because the memory was full",
            file=out,
            remedy=f"{CONTINUE}; --workers 1 needs the least memory",
        ) from None
    except OSError as error:
        raise FileError(
            f"cannot be written ({error.strerror or error})",
            file=out,
            remedy=f"make room or make it writable, then {CONTINUE}",
        ) from error


# --- the folder of the data set


def _origin(source: str, config: ConvertConfig) -> dict[str, Any]:
    """What identifies a conversion: the bytes of the source and the settings."""
    sha256 = source_fingerprint(source, config)
    # the folder of a local source may change, its name in the info file does not
    path = local_path(source)
    # an address is stored, and shown to others, without a password or a signature in it
    name = path.name if path.exists() else without_secrets(source)
    settings = config.model_dump(mode="json")
    # not set, as in data sets of versions without these keys, which are finished all the same
    for key in LATER_KEYS:
        if settings[key] == type(config).model_fields[key].default:
            del settings[key]
    return {"file": name, "sha256": sha256, "config": settings}


def _finished(out: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The info of a whole data set that was made from the same source, or None."""
    try:
        info = read_info(out)
    except BrokenDataSetError:
        return None
    return info if info["source"] == origin else None


def _mark_unfinished(out: Path) -> None:
    """Remove the info file of an older conversion."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset_info.json").unlink(missing_ok=True)


def _finish(
    out: Path, job: _Job, num_parts: int, origin: dict[str, Any], run: Map
) -> dict[str, Any]:
    """Replace the files of an older conversion by the shards of the staged parts."""
    # an older conversion may have had more shards than this one
    for stale in out.iterdir():
        if OWN_FILE.fullmatch(stale.name):
            stale.unlink()

    staged = []
    for number in range(num_parts):
        path = staged_path(out, number)
        account = read_staged(path, job.key)
        assert account is not None, "a staged part has disappeared"
        staged.append((path, account))

    about = {"licence": job.config.licence, "description": job.config.description, "source": origin}
    info = finish(out, staged, about, skip_bad=job.config.skip_bad, shard_size=SHARD_SIZE, run=run)
    shutil.rmtree(out / FOLDER)
    return info


# --- which structures, and on which side


def assign_split(structure: Structure, config: ConvertConfig) -> str:
    """The split of a structure: "test" for held-out pairs, else its own, else that of its group."""
    symbols = _symbols(structure)
    if any(symbols.issuperset(pair) for pair in config.hold_out_pairs):
        return "test"
    if structure.split is not None:
        return structure.split
    key = structure.structure_id if config.split_by == "structure" else structure.group
    return split_of(key, config)


def split_of(group: str, config: ConvertConfig) -> str:
    """The split of a group by a hash of its name.

    All structures of a group are on one side, on every machine, and adding data moves none.
    """
    digest = hashlib.sha256(group.encode()).digest()
    # uniform in [0, 1)
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < config.test_share:
        return "test"
    if point < config.test_share + config.valid_share:
        return "valid"
    return "train"


def _has_wanted_elements(structure: Structure, config: ConvertConfig) -> bool:
    if not config.with_elements and not config.without_elements:
        return True
    symbols = _symbols(structure)
    if config.with_elements and symbols.isdisjoint(config.with_elements):
        return False
    return symbols.isdisjoint(config.without_elements)


def _symbols(structure: Structure) -> set[str]:
    return {chemical_symbols[number] for number in structure.elements}
