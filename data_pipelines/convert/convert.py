"""Any source -> sharded Parquet with dataset_info.json and census.json, in parallel and restartable.

Parts of the source are staged on their own (staging.py), then cut into shards (finish.py).  The info file is written
last: a folder without it is an unfinished conversion, and the same call goes on from the parts that are staged.
"""

from __future__ import annotations

import hashlib
import os
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

from ...core.settings import SettingsError
from ...core.workers import worker_pool
from ..checks.unit_check import refuse_suspicious_units
from ..sources.read import (
    Part,
    Rejected,
    SourceConfig,
    check_columns_exist,
    list_parts,
    read_part,
    source_fingerprint,
)
from ..store.shards import SHARD_SIZE, BrokenDataSetError, read_info
from ..structure import Structure
from .finish import Map, finish
from .staging import FOLDER, StagedPart, conversion_key, read_staged, stage, staged_path


RECORDS_PER_PART = 4096
# what a conversion writes, under final or temporary names; nothing else in its folder is touched
OWN_FILE = re.compile(
    r"\.?((train|valid|test)-\d{5}\.parquet|(dataset_info|census)\.json|(rejected|duplicates)\.jsonl)(\.tmp\d+)?"
)


class ConvertConfig(SourceConfig):
    """How a source becomes a data set: its columns, and how it is split."""

    valid_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of groups held out for validation"
    )
    test_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of groups held out for testing"
    )
    licence: str = Field(default="not stated", description="licence of the data, for the card")
    description: str = Field(default="", description="where the data comes from, for the card")
    with_elements: list[str] = Field(
        default=[], description="keep structures with any of these only"
    )
    without_elements: list[str] = Field(
        default=[], description="leave out structures with any of these"
    )
    hold_out_pairs: list[tuple[str, str]] = Field(
        default=[],
        description="structures with both elements of a pair are for testing, whatever their group",
    )
    skip_bad: bool = Field(
        default=False, description="set bad records aside in rejected.jsonl, go on"
    )

    @field_validator("with_elements", "without_elements")
    @classmethod
    def _symbols(cls, symbols: list[str]) -> list[str]:
        unknown = [symbol for symbol in symbols if symbol not in chemical_symbols[1:]]
        if unknown:
            raise ValueError(f"{', '.join(map(str, unknown))}: not an element symbol")
        return symbols

    @field_validator("hold_out_pairs")
    @classmethod
    def _pairs(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        cls._symbols([symbol for pair in pairs for symbol in pair])
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

    workers: processes, by default one per core; the result does not depend on it.
    task: (k, n) stages only every n-th part, beginning with the k-th of 1..n, and returns None; once all tasks have
    run, in any order and place, the call without a task finishes.
    A finished conversion of the same bytes with the same config is left as it is.  Raises BadRecordError for a bad
    record, UnitError for labels that look wrong and OSError when `out` cannot be written, with nothing under a final
    name but whole shards.
    """
    source, out = str(source), Path(out)
    if out.is_file():
        raise BrokenDataSetError(f"{out}: is a file: name a folder for the data set")
    if task is not None and not 1 <= task[0] <= task[1]:
        raise SettingsError(
            f"task={task[0]}/{task[1]}: the first number is one of 1..{max(task[1], 1)}"
        )
    check_columns_exist(source, config)
    origin = _origin(source, config)
    if finished := _finished(out, origin):
        return finished
    if not config.trust_units:
        refuse_suspicious_units(source, config)
    parts = list_parts(source, config, RECORDS_PER_PART)
    job = _Job(out, conversion_key(origin, parts), config)
    with _named_failures(out), ExitStack() as stack:
        _remove_other_info(out)
        numbers = range(len(parts)) if task is None else range(task[0] - 1, len(parts), task[1])
        missing = [
            (k, parts[k]) for k in numbers if read_staged(staged_path(out, k), job.key) is None
        ]
        run: Map = map
        if len(missing) > 1 and workers != 1:
            run = stack.enter_context(worker_pool(workers)).map
        name = origin["file"]
        for _ in track(
            run(job.stage, missing), f"converting {name}", total=len(missing), transient=True
        ):
            pass
        if task is not None:
            return None
        return _finish(out, job, len(parts), origin, run)


def write_data_set(
    structures: Iterable[Structure], out: Path, origin: dict[str, Any], config: ConvertConfig
) -> dict[str, Any]:
    """Write checked structures as a data set, the way `convert` writes those of a source."""
    job, structures, count = _Job(out, conversion_key(origin, []), config), iter(structures), 0
    with _named_failures(out):
        _remove_other_info(out)
        while chunk := list(islice(structures, RECORDS_PER_PART)):
            job.stage_records(count, enumerate(chunk, count * RECORDS_PER_PART), origin["file"])
            count += 1
        return _finish(out, job, count, origin, map)


@dataclass(frozen=True)
class _Job:
    """What a process must know to stage a part."""

    out: Path
    key: str
    config: ConvertConfig

    def stage(self, numbered: tuple[int, Part]) -> None:
        index, part = numbered
        self.stage_records(
            index, enumerate(_named_reading(part, self.config), part.first), part.name
        )

    def stage_records(
        self, index: int, records: Iterable[tuple[int, Structure | Rejected | None]], file: str
    ) -> None:
        stage(
            records,
            staged_path(self.out, index),
            StagedPart(self.key, file),
            split_of=lambda structure: assign_split(structure, self.config),
            wanted=lambda structure: _wanted(structure, self.config),
            skip_bad=self.config.skip_bad,
        )


def _origin(source: str, config: ConvertConfig) -> dict[str, Any]:
    fingerprint = source_fingerprint(source, config)
    name = Path(source).name if Path(source).exists() else source
    return {"file": name, "sha256": fingerprint, "config": config.model_dump(mode="json")}


def _remove_other_info(out: Path) -> None:
    """From here on the folder is an unfinished conversion."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset_info.json").unlink(missing_ok=True)


def _finish(
    out: Path, job: _Job, num_parts: int, origin: dict[str, Any], run: Map
) -> dict[str, Any]:
    """Replace what an older conversion left by the shards of the staged parts."""
    for stale in out.iterdir():
        if OWN_FILE.fullmatch(stale.name):
            stale.unlink()
    paths = [staged_path(out, k) for k in range(num_parts)]
    staged = [(path, account) for path in paths if (account := read_staged(path, job.key))]
    assert len(staged) == num_parts, "a staged part vanished"
    about = {"licence": job.config.licence, "description": job.config.description, "source": origin}
    info = finish(out, staged, about, skip_bad=job.config.skip_bad, shard_size=SHARD_SIZE, run=run)
    shutil.rmtree(out / FOLDER)
    return info


def _named_reading(part: Part, config: ConvertConfig) -> Iterator[Structure | Rejected | None]:
    try:
        yield from read_part(part, config)
    except OSError as error:  # a network or a disk that went away
        raise OSError(
            f"{part.name}: reading failed ({error}): run the same command again, it goes on from the finished parts"
        ) from error


@contextmanager
def _named_failures(out: Path) -> Iterator[None]:
    """What stops a conversion from outside, with the mend."""
    try:
        yield
    except BrokenProcessPool:
        raise OSError(
            f"{out}: a worker process was killed, perhaps for memory: run the same command again, it goes on from the "
            "finished parts; --workers 1 needs the least memory"
        ) from None
    except OSError as error:
        if error.errno is None:  # named where it happened
            raise
        raise OSError(
            f"{out}: cannot be written ({os.strerror(error.errno)}): make room or make it writable, then run the same "
            "command again, it goes on from the finished parts"
        ) from error


def assign_split(structure: Structure, config: ConvertConfig) -> str:
    """Held-out pairs for testing; then the structure's own split; then the hash of its group."""
    symbols = {chemical_symbols[z] for z in structure.elements}
    if any(symbols.issuperset(pair) for pair in config.hold_out_pairs):
        return "test"
    key = structure.structure_id if config.split_by == "structure" else structure.group
    return structure.split or split_of(key, config)


def _wanted(structure: Structure, config: ConvertConfig) -> bool:
    symbols = {chemical_symbols[z] for z in structure.elements}
    wanted = not config.with_elements or bool(symbols & set(config.with_elements))
    return wanted and not symbols & set(config.without_elements)


def _finished(out: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The info of a whole data set that was made from the same source, or None."""
    try:
        info = read_info(out)
    except BrokenDataSetError:
        return None
    return info if info["source"] == origin else None


def split_of(group: str, config: ConvertConfig) -> str:
    """Split of a group by a hash of its key, so that near duplicates stay on one side, on every machine."""
    point = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if point < config.test_share:
        return "test"
    return "valid" if point < config.test_share + config.valid_share else "train"
