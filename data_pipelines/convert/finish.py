"""The second half of a conversion: staged parts become shards, census.json and dataset_info.json.

Shards are cut from the kept structures in the order of the source, so they do not depend on the
number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.errors import EvenfieldError
from ...core.files import write_atomically
from ...core.labels import LABELS
from ...core.level_names import refuse_two_spellings
from ..census.census import Census
from ..sources.label_tally import LabelTally, added, from_json, how_to_read_labels, to_json
from ..sources.records import default_group
from ..store.fingerprints import SHA256, write_fingerprints
from ..store.shards import ARROW_SCHEMA, write_info, write_shard
from ..store.whole import LISTS_SHA256, sums_of_lists
from ..structure import SCHEMA_VERSION, SPLITS, BadRecordError
from . import near_duplicates
from .between_sources import NO_MATERIAL
from .splits import Candidates, SplitConfig, arrange, as_json
from .staging import DOMAIN_COLUMNS, STAGED_COLUMNS, StagedPart, rejection


Map = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
"""`map`, or the `map` of a process pool."""


@dataclass(frozen=True)
class Staged:
    """One staged file."""

    path: Path

    footer: StagedPart

    source: int = 0
    """Index of the source."""


Parts = list[Staged]
"""Staged files in the order of the sources."""


class ConversionError(EvenfieldError):
    """A conversion cannot be completed although its source can be read."""


class SpellingError(ConversionError):
    """A source spells the same level of theory in two ways."""


class NoLabelsError(ConversionError):
    """No label of a source was read: the settings name none, or it has none."""

    def __init__(self, message: str, *, tally: LabelTally, **parts: str) -> None:
        super().__init__(message, **parts)
        self.tally = tally


@dataclass(frozen=True)
class ShardPlan:
    """The content of one shard: pairs of a staged file and the rows to take from it, in order."""

    path: Path
    split: str
    pieces: list[tuple[Path, np.ndarray]]


def finish(
    out: Path,
    parts: Parts,
    about: dict[str, Any],
    configs: Sequence[SplitConfig],
    *,
    skip_bad: Sequence[bool],
    shard_size: int,
    run: Map = map,
) -> dict[str, Any]:
    """Write a data set from its staged parts; returns the content of its dataset_info.json.

    out: an empty folder.
    about: fields of dataset_info.json that are known beforehand. If it has `sources`, the counts of
        each source's structures are added to its entry there.
    configs: settings for the splits of each source.
    skip_bad: for each source, whether structures with repeated ids are rejected without an error.
    shard_size: number of structures in a shard.
    run: applies a function to every shard, by default in this process.

    Raises BadRecordError for the second structure with the same id and level of theory (unless
    `skip_bad`), SpellingError for a level of theory with two spellings, NoLabelsError if no label
    was read, and ConversionError if no structure is left to train on.
    """
    tally = _tally(parts, about)
    refuse_two_spellings(
        tally.structures,
        SpellingError,
        file=about["source"]["file"],
        remedy="give them one name in the source",
    )

    # drop empty parts, for example of an empty file
    parts = [
        part for part in parts if part.footer.kept or part.footer.filtered or part.footer.rejected
    ]
    index = _Index.read(parts)

    rejected = []
    for part in parts:
        rejected += part.footer.rejected
    for row, error in _repeated_ids(parts, index):
        if not skip_bad[index.source[row]]:
            raise error
        index.keep[row] = False
        rejected.append(rejection(error))

    splits, leaks = _arrange(parts, index, configs)
    rejected += [rejection(error) for error in leaks]
    plans = _plan(out, parts, index, shard_size)
    if not any(plan.split == "train" for plan in plans):
        raise ConversionError(
            "no structure is left to train on",
            file=about["source"]["file"],
            remedy="check the splits and the element filters",
        )

    # the census is taken while shards are written, because their tables are in memory then
    shards = {}
    census = Census()
    for plan, (entry, own_census) in zip(plans, run(write_planned, plans), strict=True):
        shards[plan.path.name] = entry
        census += own_census

    kept = int(index.keep.sum())
    filtered = sum(part.footer.filtered for part in parts)
    kept_splits = index.split[index.keep]
    info = {
        "schema_version": SCHEMA_VERSION,
        "units": _units(),
        **about,
        "records": {
            "read": kept + filtered + len(rejected),
            "kept": kept,
            "filtered": filtered,
            "rejected": len(rejected),
        },
        "num_structures": {
            split: int((kept_splits == code).sum()) for code, split in enumerate(SPLITS)
        },
        "splits": splits,
        "near_duplicates": _write_near_duplicates(out, parts, index),
        "levels_of_theory": census.levels,
        "labels": to_json(tally),
        "shards": shards,
    }
    if "sources" in about:
        info["sources"] = _with_counts(about["sources"], parts, index)

    if rejected:
        lines = [json.dumps(row) + "\n" for row in rejected]
        write_atomically(out / "rejected.jsonl", "".join(lines))
    counted = json.dumps(census.to_dict(), indent=1).encode()
    write_atomically(out / "census.json", counted)
    info["census_sha256"] = hashlib.sha256(counted).hexdigest()
    info[SHA256] = write_fingerprints(out, _fingerprints(index))
    info[LISTS_SHA256] = sums_of_lists(out)
    # written last, because it makes the folder a data set
    return write_info(out, info)


def _tally(parts: Parts, about: dict[str, Any]) -> LabelTally:
    """The label counts of all sources. Raises NoLabelsError if a source has no labels."""
    total = LabelTally()
    for number in sorted({part.source for part in parts}):
        own = [part.footer for part in parts if part.source == number]
        tally = added(from_json(footer.labels) for footer in own)
        file = own[0].source if "sources" in about else about["source"]["file"]
        prefix = prefix_of(about["sources"][number]) if "sources" in about else ""
        _refuse_without_labels(tally, file, prefix)
        total += tally
    return total


def prefix_of(source: Mapping[str, Any]) -> str:
    """The prefix of a source's settings on the command line, if there are several sources."""
    return f"sources.{source['name']}."


def _refuse_without_labels(tally: LabelTally, file: str, prefix: str) -> None:
    """Raise NoLabelsError if structures were read, but not a single label."""
    if tally.num_labels or not tally.structures:
        return
    total = sum(tally.structures.values())
    raise NoLabelsError(
        f"none of its {total} structures has a label that was read",
        file=file,
        remedy=how_to_read_labels(tally, prefix),
        tally=tally,
    )


def _units() -> dict[str, str]:
    units = {"length": "A"} | {name: label.unit for name, label in LABELS.items()}
    units["stress"] += ", tensile-positive"
    return units


@dataclass
class _Index:
    """All S staged structures: their place in the staged files, and the columns that decide splits.

    Arrays have shape (S,) unless stated otherwise; names as in `Candidates`.
    """

    part: np.ndarray
    """Index of the part."""

    row: np.ndarray
    """Row in the part."""

    split: np.ndarray
    """Index into SPLITS."""

    is_stated: np.ndarray
    """Whether the split is stated."""

    key_hash: np.ndarray
    level_hash: np.ndarray
    elements: np.ndarray
    """Distinct atomic numbers of each structure, concatenated."""

    element_starts: np.ndarray
    """(S + 1,) offsets of the structures in `elements`."""

    id_hash: np.ndarray
    fingerprint: np.ndarray

    source: np.ndarray
    """Index of the source."""

    material: np.ndarray

    keep: np.ndarray
    """False for a structure that is rejected during `finish`."""

    @classmethod
    def read(cls, parts: Parts) -> _Index:
        names = list(STAGED_COLUMNS)
        names.remove("record")
        tables = [pq.read_table(part.path, columns=names) for part in parts]
        if not tables:
            empty = pa.schema({name: STAGED_COLUMNS[name] for name in names})
            tables = [empty.empty_table()]
        columns = pa.concat_tables(tables)

        sizes = [table.num_rows for table in tables]
        elements = columns["elements"].combine_chunks()
        num_elements = pc.list_value_length(elements).to_numpy(zero_copy_only=False)
        return cls(
            part=np.repeat(np.arange(len(tables)), sizes),
            row=np.concatenate([np.arange(size) for size in sizes]),
            # a copy, because splits are corrected later
            split=columns["split_code"].to_numpy().copy(),
            is_stated=columns["is_stated"].to_numpy(),
            key_hash=columns["key_hash"].to_numpy(),
            level_hash=columns["level_hash"].to_numpy(),
            elements=elements.flatten().to_numpy(),
            element_starts=np.concatenate([[0], np.cumsum(num_elements)]).astype(np.int64),
            id_hash=columns["id_hash"].to_numpy(),
            fingerprint=columns["fingerprint"].to_numpy(),
            source=np.repeat([part.source for part in parts] or [0], sizes),
            material=columns["material"].fill_null(NO_MATERIAL).to_numpy(),
            keep=np.ones(columns.num_rows, bool),
        )

    def elements_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Concatenated distinct elements of some rows, and their offsets (len(rows) + 1,)."""
        counts = np.diff(self.element_starts)
        is_chosen = np.zeros(len(counts), bool)
        is_chosen[rows] = True
        elements = self.elements[np.repeat(is_chosen, counts)]
        starts = np.concatenate([[0], np.cumsum(counts[rows])]).astype(np.int64)
        return elements, starts


def _values_at(parts: Parts, index: _Index, rows: np.ndarray, name: str) -> dict[int, Any]:
    """Row of the index -> value of a column; reads only the parts that contain these rows."""
    values: dict[int, Any] = {}
    for part in np.unique(index.part[rows]):
        own = rows[index.part[rows] == part]
        column = pq.read_table(parts[part].path, columns=[name])[name]
        chosen = column.take(pa.array(index.row[own]))
        values |= dict(zip(own.tolist(), chosen.to_pylist(), strict=True))
    return values


def _repeated_ids(parts: Parts, index: _Index) -> list[tuple[int, BadRecordError]]:
    """Row and error of each structure that repeats the id and level of an earlier one."""
    # equal hashes are only candidates, so the ids themselves are compared below
    groups = near_duplicates.group_equal(index.id_hash)
    if not groups:
        return []
    rows = np.sort(np.concatenate(groups))
    ids = _values_at(parts, index, rows, "structure_id")
    records = _values_at(parts, index, rows, "record")

    # the same id is allowed at several levels of theory
    first: dict[tuple[str, int], int] = {}
    repeated = []
    for row in rows.tolist():
        name = ids[row], int(index.level_hash[row])
        earlier = first.setdefault(name, row)
        if earlier == row:
            continue
        earlier_file = parts[index.part[earlier]].footer.source
        error = BadRecordError(
            f"has the id '{ids[row]}' of record {records[earlier]} of {earlier_file}",
            remedy="make the ids unique, or leave one of the two out",
            file=parts[index.part[row]].footer.source,
            record=records[row],
        )
        repeated.append((row, error))
    return repeated


def _arrange(
    parts: Parts, index: _Index, configs: Sequence[SplitConfig]
) -> tuple[dict[str, Any], list[BadRecordError]]:
    """Correct the splits of the kept structures, and reject those that would leak.

    Returns the entry of dataset_info.json about the splits, and an error for each rejected one.
    """
    kept = np.flatnonzero(index.keep)
    elements, starts = index.elements_of(kept)

    def is_composition(row: int) -> bool:
        own = kept[row : row + 1]
        (group,) = _values_at(parts, index, own, "group").values()
        (numbers,) = _values_at(parts, index, own, "atomic_numbers").values()
        return bool(group == default_group(np.array(numbers)))

    found = Candidates(
        split=index.split[kept].astype(np.int64),
        is_stated=index.is_stated[kept],
        key=index.key_hash[kept],
        is_composition=is_composition,
        fingerprint=index.fingerprint[kept],
        level=index.level_hash[kept],
        elements=elements,
        element_starts=starts,
        source=index.source[kept],
        material=index.material[kept],
    )
    done = arrange(found, configs)
    index.split[kept] = done.split
    leaking = kept[done.is_dropped]
    index.keep[leaking] = False

    level_names: dict[int, str] = {}
    for level in (*done.levels_not_in_training, *done.elements_not_in_training):
        row = kept[np.flatnonzero(found.level == level)[:1]]
        (name,) = _values_at(parts, index, row, "level_of_theory").values()
        level_names[level] = name
    return as_json(done, found.is_stated, level_names), _leaks(parts, index, leaking)


def _leaks(parts: Parts, index: _Index, rows: np.ndarray) -> list[BadRecordError]:
    records = _values_at(parts, index, rows, "record")
    return [
        BadRecordError(
            "is in training by its own source, and its material is held out in another one",
            file=parts[index.part[row]].footer.source,
            record=records[row],
        )
        for row in rows.tolist()
    ]


def _with_counts(
    sources: list[dict[str, Any]], parts: Parts, index: _Index
) -> list[dict[str, Any]]:
    """Add label counts, and structures by level of theory and split, to the entries of sources."""
    counted = []
    for number, about in enumerate(sources):
        own = np.flatnonzero(index.keep & (index.source == number))
        levels = {}
        for level in np.unique(index.level_hash[own]):
            rows = own[index.level_hash[own] == level]
            (name,) = _values_at(parts, index, rows[:1], "level_of_theory").values()
            levels[name] = {
                split: int((index.split[rows] == code).sum()) for code, split in enumerate(SPLITS)
            }
        footers = [part.footer for part in parts if part.source == number]
        labels = to_json(added(from_json(footer.labels) for footer in footers))
        counted.append(
            {**about, "levels_of_theory": dict(sorted(levels.items())), "labels": labels}
        )
    return counted


def _plan(out: Path, parts: Parts, index: _Index, shard_size: int) -> list[ShardPlan]:
    """The shards of each split, with `shard_size` structures each; the last may be smaller."""
    plans = []
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(index.keep & (index.split == code))
        for number, first in enumerate(range(0, len(rows), shard_size)):
            own = rows[first : first + shard_size]
            pieces = []
            for part in np.unique(index.part[own]):
                inside = own[index.part[own] == part]
                pieces.append((parts[part].path, index.row[inside]))
            shard = out / f"{split}-{number:05d}.parquet"
            plans.append(ShardPlan(shard, split, pieces))
    return plans


def write_planned(plan: ShardPlan) -> tuple[dict[str, Any], Census]:
    """Write one shard; returns its entry for dataset_info.json and its census."""
    # the domain consists of training structures only
    further = list(DOMAIN_COLUMNS) if plan.split == "train" else []
    pieces = []
    for path, rows in plan.pieces:
        staged = pq.read_table(path, columns=[*ARROW_SCHEMA.names, *further])
        pieces.append(staged.take(pa.array(rows)))
    staged = pa.concat_tables(pieces).combine_chunks()
    table = staged.select(ARROW_SCHEMA.names)
    census = Census()
    census.add_table(table, plan.split)
    if further:
        census.add_domains(staged)
    return write_shard(table, plan.path), census


def _fingerprints(index: _Index) -> dict[str, np.ndarray]:
    """Split -> fingerprints of its structures, in the order of the shards."""
    return {
        split: index.fingerprint[index.keep & (index.split == code)]
        for code, split in enumerate(SPLITS)
    }


def _write_near_duplicates(out: Path, parts: Parts, index: _Index) -> dict[str, Any]:
    """Write the groups of near duplicates to duplicates.jsonl; returns their counts."""
    kept = np.flatnonzero(index.keep)
    groups_of_kept = near_duplicates.group_equal(index.fingerprint[kept])
    groups = [kept[rows] for rows in groups_of_kept]
    if groups:
        # a group can have thousands of members, so only the first ones are listed
        shown = [rows[: near_duplicates.SHOWN_IDS] for rows in groups]
        ids = _values_at(parts, index, np.concatenate(shown), "structure_id")
        lines = []
        for rows, first in zip(groups, shown, strict=True):
            group = {
                "num_structures": {
                    split: int((index.split[rows] == code).sum())
                    for code, split in enumerate(SPLITS)
                },
                "structure_ids": [ids[row] for row in first.tolist()],
            }
            lines.append(json.dumps(group))
        write_atomically(out / "duplicates.jsonl", "\n".join(lines) + "\n")
    return near_duplicates.summarise(groups, index.split)
