"""Convert any source to a data set: Parquet shards with dataset_info.json and census.json.

First, the parts of the source are staged in parallel (`staging.py`). Then splits are arranged
(`splits.py`), and the structures are cut into shards in a new folder (`finish.py`). This folder
replaces OUT in one step. Until then, OUT keeps its previous content next to the staged parts. If a
conversion is interrupted, the same call continues with the parts that are not staged yet.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from pydantic import Field, field_validator
from rich.progress import track

from ...core.addresses import local_path, without_secrets
from ...core.destination import (
    DATA_SETS,
    DestinationError,
    check_destination,
    contents,
    keep_files_of_others,
    replace_folder,
)
from ...core.errors import EvenfieldError
from ...core.files import FileError, write_atomically
from ...core.settings import SettingsError
from ...core.terminal import say
from ...core.workers import WorkerEndedError, worker_pool
from ..checks.unit_check import refuse_suspicious_units
from ..neighbours import GeometryError
from ..physics.config import PhysicsConfig
from ..physics.errors import PhysicsError
from ..physics.physics import Physics
from ..physics.residual import PHYSICS, other_charge, to_state, without_physics
from ..sources.label_tally import LabelTally, to_json
from ..sources.read import (
    RECORDS_PER_PART,
    Count,
    check_columns_exist,
    list_parts,
    read_part,
    source_fingerprint,
    split_files,
)
from ..sources.records import Record, Unread
from ..sources.source_format import Part
from ..store.folder_files import CARD, PARTS, files_of_data_set, refuse_files_of_others
from ..store.shards import SHARD_SIZE, BrokenDataSetError, stated_info
from ..store.whole import check_all_files
from ..structure import BadRecordError, Pairs, Structure, check_labels, pairs_within
from .finish import ConversionError, Map, Staged, finish
from .near_duplicates import CUTOFF, fingerprint, material_hash
from .splits import SplitConfig, assign_split, check_symbols, split_key
from .staging import (
    StagedPart,
    StagedRow,
    begin,
    conversion_key,
    find_staged,
    origins,
    stage,
    staging_folder,
    tidy,
)


CONTINUE = "run the same command again, it continues with the parts that are not finished"


class ConvertConfig(SplitConfig):
    """How a source becomes a data set: columns, splits, filters and physics."""

    licence: str = Field(default="not stated", description="licence of the data, for the card")
    description: str = Field(default="", description="where the data come from, for the card")
    with_elements: list[str] = Field(
        default=[], description="keep only structures with at least one of these elements"
    )
    without_elements: list[str] = Field(
        default=[], description="leave out structures with any of these elements"
    )
    skip_bad: bool = Field(
        default=False, description="list bad records in rejected.jsonl and continue"
    )
    physics: PhysicsConfig | None = Field(
        default=None,
        description="physics that is subtracted from the labels, and added by models that are "
        "trained on them",
    )

    @field_validator("with_elements", "without_elements")
    @classmethod
    def _check_symbols(cls, symbols: list[str]) -> list[str]:
        check_symbols(symbols)
        return symbols


def convert(
    source: Path | str,
    out: Path | str,
    config: ConvertConfig,
    *,
    workers: int | None = None,
    task: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Convert a source into the folder `out`; returns the content of its dataset_info.json.

    workers: number of processes, by default one per core. The result does not depend on it.
    task: (k, n) stages only every n-th part, starting with the k-th of 1..n, and returns None.
        When all tasks have run, in any order and on any machine, call again without a task to
        finish.
    overwrite: replace another data set in `out` once the new one is complete. Other files in the
        folder are kept.

    If `out` already holds a conversion of the same bytes with the same config, nothing is done,
    unless one of its files is damaged. With `overwrite`, the conversion always runs again.

    With workers=1, files are read in this process. If it has no threads other than daemon threads
    (such as progress bars), its memory is limited while ASE reads a file; see `core.memory`.

    Raises DestinationError if `out` holds something else, SourceError if the source cannot be read,
    BadRecordError for a bad record (unless `skip_bad`), UnitError for labels that look wrong,
    FileError if `out` cannot be written, and ConversionError if nothing is left to train on. The
    previous content of `out` stays intact even then.
    """
    source = str(source)
    about = {"licence": config.licence, "description": config.description}
    identity = {"file": name_of_source(source), "config": settings_of(config)}
    named = [NamedSource(source, config)]
    return convert_sources(
        named, out, identity, about, workers=workers, task=task, overwrite=overwrite
    )


@dataclass(frozen=True)
class NamedSource:
    """One of the sources of a data set."""

    place: str
    """File, folder, glob, URL or hub data set."""

    config: ConvertConfig

    name: str | None = None
    """Prefix of its structure ids and name in error messages; None if there is only one source."""

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Add the name of the source to errors that are raised inside the block."""
        try:
            yield
        except EvenfieldError as error:
            if self.name is not None:
                error.message += f" (source {self.name})"
            raise


def convert_sources(
    sources: Sequence[NamedSource],
    out: Path | str,
    identity: dict[str, Any],
    about: dict[str, Any],
    *,
    card: Callable[[dict[str, Any]], str] | None = None,
    workers: int | None = None,
    task: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Convert one or several sources into one data set.

    Other arguments, return value and errors as in `convert`.

    identity: identifies the conversion apart from the source bytes: `file`, a name, and `config`,
        all settings.
    about: fields of dataset_info.json that are known beforehand. If it has `sources`, the hash of
        each source is added to its entry there.
    card: returns the text of data_card.md, given the content of dataset_info.json.
    """
    out = Path(out)
    _check_place(out, sources, identity, overwrite)
    if task is not None and not 1 <= task[0] <= task[1]:
        raise SettingsError(
            f"task={task[0]}/{task[1]}: the first number is one of 1..{max(task[1], 1)}"
        )

    # quick checks come first: misspelt columns, a finished conversion, wrong units
    about = {**about, **_stated_physics(sources)}
    hashes = []
    for source in sources:
        with source.named_in_errors():
            check_columns_exist(source.place, source.config)
            hashes.append(source_fingerprint(source.place, source.config))
    origin = {
        "file": identity["file"],
        "sha256": _of_all(hashes),
        "config": identity["config"],
    }
    finished = None if overwrite else _finished(out, origin)
    if finished is not None:
        return finished
    _check_content(out, origin, overwrite)
    refuse_files_of_others(out)
    for source in sources:
        with source.named_in_errors():
            if not source.config.trust_units:
                refuse_suspicious_units(source.place, source.config)

    parts: list[SourcePart] = []
    for number, source in enumerate(sources):
        with source.named_in_errors():
            own = list_parts(source.place, source.config, RECORDS_PER_PART)
        parts += [SourcePart(number, part) for part in own]
    key = conversion_key(origin, [part.part for part in parts])
    job = _Job(out, key, tuple(sources))
    with _interruptions(out, job.folder), job.staging(origin), ExitStack() as stack:
        numbers = range(len(parts))
        if task is not None:
            numbers = numbers[task[0] - 1 :: task[1]]
        missing = []
        for number in numbers:
            if find_staged(job.folder, number, job.key) is None:
                missing.append((number, parts[number]))

        # a pool takes a second to start, which does not pay off for a single part
        run: Map = map
        if len(missing) > 1 and workers != 1:
            run = stack.enter_context(worker_pool(workers)).map
        staged = run(job.stage, missing)
        title = f"converting {origin['file']}"
        for _ in track(staged, title, total=len(missing), transient=True):
            pass

        if task is not None:
            return None
        described = dict(about)
        if "sources" in about:
            entries = zip(about["sources"], hashes, strict=True)
            described["sources"] = [{**entry, "sha256": sha256} for entry, sha256 in entries]
        return _finish(out, job, parts, {**described, "source": origin}, run, card)


def _stated_physics(sources: Sequence[NamedSource]) -> dict[str, Any]:
    """The entry of dataset_info.json for the physics of all sources; empty if there is none.

    Raises PhysicsError if the sources differ in their physics, and MissingPackageError if a package
    for it is not installed.
    """
    physics = sources[0].config.physics
    for source in sources:
        if source.config.physics != physics:
            raise PhysicsError(
                f"source {source.name} has other settings of physics than {sources[0].name}, and "
                "one model could not add both",
                remedy="give all sources the same",
            )
    if physics is None:
        return {}
    # raises MissingPackageError if a package is not installed
    Physics(physics)
    return {PHYSICS: to_state(physics)}


def _of_all(hashes: list[str]) -> str:
    """The hash of a single source, or a hash over the hashes of several."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def write_data_set(
    structures: Iterable[Structure],
    out: Path,
    origin: dict[str, Any],
    config: ConvertConfig,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write structures as a data set, in the same way as `convert` writes a source.

    Only the shapes of labels are checked; the caller is responsible for all other checks. If
    `config.physics` is set, the labels are totals, and the physics is subtracted here.

    origin: the entry of dataset_info.json about the source; `file` and `sha256` are required.
    overwrite: as in `convert`.

    Raises DestinationError if `out` is occupied, BadRecordError for a label of the wrong shape, and
    FileError, ConversionError and MissingPackageError as `convert` does.
    """
    check_destination(out, overwrite=overwrite, kinds=DATA_SETS)
    refuse_files_of_others(out)
    source = NamedSource(origin["file"], config)
    physics = _stated_physics([source])
    job = _Job(out, conversion_key({**origin, **physics}, []), (source,))
    about = {"licence": config.licence, "description": config.description, "source": origin}
    about |= physics
    remaining = map(_with_checked_labels, structures)
    parts: list[SourcePart] = []
    with _interruptions(out, job.folder), job.staging(origin):
        while chunk := list(islice(remaining, RECORDS_PER_PART)):
            numbered = enumerate(chunk, len(parts) * RECORDS_PER_PART)
            part = SourcePart(0, Part(origin["file"]))
            job.stage_records(len(parts), numbered, part)
            parts.append(part)
        return _finish(out, job, parts, about, map)


def _with_checked_labels(structure: Structure) -> Structure:
    try:
        check_labels(structure)
    except BadRecordError as error:
        error.record = structure.structure_id
        raise
    return structure


@dataclass(frozen=True)
class SourcePart:
    """A part of one of several sources."""

    source: int
    """Index of the source."""

    part: Part


@dataclass(frozen=True)
class Surroundings:
    """The pairs of atoms in one structure, and the fingerprint computed from them."""

    fingerprint: int

    pairs: Pairs
    """Pairs within CUTOFF."""


@dataclass(frozen=True)
class _Job:
    """Everything that a process needs to stage a part; pickled for worker processes."""

    out: Path
    key: str
    sources: tuple[NamedSource, ...]

    @property
    def folder(self) -> Path:
        """The folder of the staged parts."""
        return staging_folder(self.out, self.key)

    @contextmanager
    def staging(self, origin: dict[str, Any]) -> Iterator[None]:
        """Create the folder of the staged parts; on failure, remove it again if it is empty."""
        try:
            begin(self.folder, origin)
            yield
        except BaseException:
            tidy(self.out, self.folder)
            raise

    def stage(self, numbered: tuple[int, SourcePart]) -> None:
        index, part = numbered
        source = self.sources[part.source]
        tally = LabelTally()

        seen: dict[int, Surroundings] = {}

        def count(record: Record, structure: Structure, unread: Unread, pairs: Pairs) -> None:
            if _has_wanted_elements(structure, source.config):
                tally.add(record, structure, unread, source.config)
                fault = other_charge(record.info.get("charge"), source.config.physics)
                if fault is not None:
                    raise BadRecordError(
                        fault, remedy="give structures of each net charge a data set of their own"
                    )
                # computed here, because the pairs are known; only the next structure needs it
                seen.clear()
                seen[id(structure)] = Surroundings(fingerprint(structure, pairs), pairs)

        records = enumerate(_read(part.part, source.config, count), part.part.first)
        with source.named_in_errors():
            self.stage_records(index, records, part, tally, seen)

    def stage_records(
        self,
        index: int,
        records: Iterable[tuple[int, Structure | BadRecordError | None]],
        part: SourcePart,
        tally: LabelTally | None = None,
        seen: dict[int, Surroundings] | None = None,
    ) -> None:
        """Stage numbered records as part `index`.

        tally: label counts, which are filled while `records` are read.
        seen: id() of the latest structure -> its surroundings, if known.
        """
        if seen is None:
            seen = {}
        source = self.sources[part.source]
        if source.config.physics is not None:
            records = _minus_physics(records, source.config, part.part.name, seen)
        staged = StagedPart(self.key, part.part.name)
        if tally is not None:
            # the counts are filled while records are read, and written after the last one
            staged.labels = to_json(tally)
        stage(
            records,
            self.folder,
            index,
            staged,
            row_of=partial(self._row, source, seen),
            wanted=lambda structure: _has_wanted_elements(structure, source.config),
            skip_bad=source.config.skip_bad,
        )

    def _row(
        self,
        source: NamedSource,
        seen: Mapping[int, Surroundings],
        structure: Structure,
        record: int,
    ) -> StagedRow:
        split, is_stated = assign_split(structure, source.config)
        key = split_key(structure, source.config)
        around = seen.get(id(structure))
        if around is None:
            pairs = pairs_within(structure, CUTOFF)
            around = Surroundings(fingerprint(structure, pairs), pairs)
        material = None
        if source.name is not None:
            # the prefix makes the id unique among all sources
            named = f"{source.name}/{structure.structure_id}"
            structure = replace(structure, structure_id=named)
            material = material_hash(structure)
        return StagedRow(
            structure=structure,
            record=record,
            split=split,
            is_stated=is_stated,
            key=key,
            fingerprint=around.fingerprint,
            pairs=around.pairs,
            material=material,
        )


def _minus_physics(
    records: Iterable[tuple[int, Structure | BadRecordError | None]],
    config: ConvertConfig,
    file: str,
    seen: dict[int, Surroundings],
) -> Iterator[tuple[int, Structure | BadRecordError | None]]:
    """Yield the numbered records with physics subtracted from their labels.

    A structure to which the physics does not apply becomes a BadRecordError. The surroundings in
    `seen` are transferred to the new structure.
    """
    assert config.physics is not None
    physics = Physics(config.physics)
    for number, found in records:
        # structures that will be filtered out may have elements that the physics does not know
        if not isinstance(found, Structure) or not _has_wanted_elements(found, config):
            yield number, found
            continue
        try:
            left = without_physics(found, physics)
        except (PhysicsError, GeometryError) as error:
            yield (
                number,
                BadRecordError(error.message, remedy=error.remedy, file=file, record=number),
            )
            continue
        around = seen.pop(id(found), None)
        if around is not None:
            seen[id(left)] = around
        yield number, left


def _read(
    part: Part, config: ConvertConfig, count: Count
) -> Iterator[Structure | BadRecordError | None]:
    try:
        # the pairs found by the check of a record are reused for its fingerprint and domain
        yield from read_part(part, config, count, pair_radius=CUTOFF)
    except OSError as error:
        # the network or a disk failed in the middle of a file
        raise FileError(f"reading failed ({error})", file=part.name, remedy=CONTINUE) from error


@contextmanager
def _interruptions(out: Path, folder: Path) -> Iterator[None]:
    """Turn killed workers and failed writes into errors with a remedy.

    folder: the folder of the staged parts.
    """
    try:
        yield
    except WorkerEndedError:
        raise ConversionError(
            "a worker process was killed, perhaps because the memory was full",
            file=out,
            remedy=f"{CONTINUE}; --workers 1 needs the least memory",
        ) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise DestinationError(
                "was replaced by another process while its parts were converted",
                file=out,
                remedy="choose another OUT, or end the other process and convert again",
            ) from error
        raise FileError(
            f"cannot be written ({error.strerror or error})",
            file=out,
            remedy=f"make room or make it writable, then {CONTINUE}",
        ) from error


# --- the folder of the data set


def _check_place(
    out: Path, sources: Sequence[NamedSource], identity: dict[str, Any], overwrite: bool
) -> None:
    """Check `out` as far as possible without reading the sources, which may take minutes."""
    if out.is_file():
        raise FileError("is a file", file=out, remedy="name a folder for the data set")
    may_continue = is_unfinished(out)
    info = _stated(out)
    if info is not None:
        stated = info["source"]
        same_config = stated.get("config") == identity["config"]
        may_continue = same_config and stated["file"] == identity["file"]
    may_replace = overwrite or may_continue
    inputs = [source.place for source in sources]
    check_destination(out, overwrite=may_replace, kinds=DATA_SETS, inputs=inputs)


def _check_content(out: Path, origin: dict[str, Any], overwrite: bool) -> None:
    """Raise DestinationError if `out` holds a data set of other bytes, finished or not."""
    if overwrite or contents(out) is None:
        return
    info = _stated(out)
    if info is not None and info["source"] != origin:
        check_destination(out, overwrite=overwrite)

    # Unfinished conversions of the same source are no obstacle. With the same settings, their parts
    # are used. With other settings, they stay in place until the end.
    for other in origins(out):
        if other is None or other["sha256"] != origin["sha256"]:
            check_destination(out, overwrite=overwrite)


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds staged parts and otherwise only files written by evenfield."""
    parts = out / PARTS
    if parts.is_symlink():
        raise DestinationError(
            "is a link, through which nothing is written", file=parts, remedy="remove it"
        )
    if not parts.is_dir() or (out / "dataset_info.json").exists():
        return False
    names = [entry.name for entry in out.iterdir() if entry != parts]
    return all(map(files_of_data_set(out), names))


def name_of_source(source: str) -> str:
    """The name of a source in dataset_info.json, without the folder of a local file."""
    path = local_path(source)
    # the name is stored and shown to others, so passwords and signatures are removed
    return path.name if path.exists() else without_secrets(source)


def settings_of(config: ConvertConfig) -> dict[str, Any]:
    """The settings of a conversion, as stored in dataset_info.json."""
    settings = config.model_dump(mode="json")
    # without physics, the settings must equal those of data sets from before the key existed
    if config.physics is None:
        del settings["physics"]
    return settings


def _stated(out: Path) -> dict[str, Any] | None:
    """dataset_info.json in `out`, even if other files are damaged; None if it is unusable."""
    try:
        return stated_info(out)
    except BrokenDataSetError:
        return None


def _finished(out: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The info of an intact data set that was made from the same source, or None.

    Every file is read to verify it. Errors about a damaged file tell the user to convert again, and
    dataset_info.json alone does not show the damage.
    """
    info = _stated(out)
    if info is None or info["source"] != origin:
        return None
    try:
        check_all_files(out, info)
    except BrokenDataSetError as error:
        say(f"{error.file}: {error.message}; the source is converted again", err=True)
        return None
    return info


def _finish(
    out: Path,
    job: _Job,
    parts: list[SourcePart],
    about: dict[str, Any],
    run: Map,
    card: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Make the data set from the staged parts and replace the content of `out` with it."""
    with replace_folder(out) as new:
        staged = []
        for number, part in enumerate(parts):
            found = find_staged(job.folder, number, job.key)
            if found is None:
                raise ConversionError("a staged part has disappeared", file=out, remedy=CONTINUE)
            staged.append(Staged(*found, part.source))

        configs = [source.config for source in job.sources]
        info = finish(
            new,
            staged,
            {**about, "split_files": _split_files(parts, job.sources)},
            configs,
            skip_bad=[config.skip_bad for config in configs],
            shard_size=SHARD_SIZE,
            run=run,
        )
        if card is not None:
            write_atomically(new / CARD, card(info))
        keep_files_of_others(out, new, files_of_data_set(out))
    return info


def _split_files(parts: list[SourcePart], sources: Sequence[NamedSource]) -> dict[str, int]:
    """Split -> number of files whose names state it, over all sources."""
    total: Counter[str] = Counter()
    for number, source in enumerate(sources):
        own = [part.part for part in parts if part.source == number]
        total += Counter(split_files(own, source.config))
    return dict(total)


# --- which structures


def _has_wanted_elements(structure: Structure, config: ConvertConfig) -> bool:
    if not config.with_elements and not config.without_elements:
        return True
    symbols = _symbols(structure)
    if config.with_elements and symbols.isdisjoint(config.with_elements):
        return False
    return symbols.isdisjoint(config.without_elements)


def _symbols(structure: Structure) -> set[str]:
    return {chemical_symbols[number] for number in structure.elements}
