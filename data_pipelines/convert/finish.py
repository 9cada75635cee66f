"""The second half of a conversion: staged parts -> shards, census, account and, last, dataset_info.json.

Shards are cut from the kept structures in the order of the source, so they do not depend on how many processes
staged or write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import write_atomically
from ..census.census import Census
from ..store.shards import ARROW_SCHEMA, write_shard
from ..structure import SCHEMA_VERSION, SPLITS, BadRecordError
from . import near_duplicates
from .staging import StagedPart


Map = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]  # map, or a pool's


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: which rows of which staged files, in order."""

    path: Path
    split: str
    pieces: list[tuple[Path, np.ndarray]]


def finish(
    out: Path,
    parts: list[tuple[Path, StagedPart]],
    about: dict[str, Any],
    *,
    skip_bad: bool,
    shard_size: int,
    run: Map = map,
) -> dict[str, Any]:
    """Write a data set from its staged parts; `about` are the fields of dataset_info.json known beforehand.

    Raises BadRecordError for two structures of one id (with skip_bad the later one is set aside instead), and when
    no structure is left to train on.
    """
    parts = [
        (path, staged)
        for path, staged in parts
        if staged.kept or staged.filtered or staged.rejected
    ]
    index = _Index.read(parts)
    rejected = [row for _, staged in parts for row in staged.rejected]
    repeated = _repeated_ids(parts, index)
    if repeated and not skip_bad:
        row = repeated[0][1]
        raise BadRecordError(f"{row['file']}: record {row['record']} {row['reason']}")
    index.keep[[row for row, _ in repeated]] = False
    rejected += [entry for _, entry in repeated]
    plans = _plan(out, parts, index, shard_size)
    if not any(plan.split == "train" for plan in plans):
        raise BadRecordError(
            f"{about['source']['file']}: leaves no structure to train on: check the splits and element filters"
        )
    shards, census = {}, Census()
    for plan, (entry, counted) in zip(plans, run(write_planned, plans), strict=True):
        shards[plan.path.name] = entry
        census += counted
    filtered, kept = sum(staged.filtered for _, staged in parts), int(index.keep.sum())
    info = {
        "schema_version": SCHEMA_VERSION,
        "units": {
            "length": "A",
            "energy": "eV",
            "forces": "eV/A",
            "stress": "eV/A^3, tensile-positive",
        },
        **about,
        "records": {
            "read": kept + filtered + len(rejected),
            "kept": kept,
            "filtered": filtered,
            "rejected": len(rejected),
        },
        "num_structures": {
            split: int((index.split[index.keep] == k).sum()) for k, split in enumerate(SPLITS)
        },
        "near_duplicates": _write_near_duplicates(out, parts, index),
        "levels_of_theory": census.levels,
        "shards": shards,
    }
    if rejected:
        write_atomically(
            out / "rejected.jsonl", "".join(json.dumps(row) + "\n" for row in rejected)
        )
    write_atomically(out / "census.json", json.dumps(census.to_dict(), indent=1))
    write_atomically(out / "dataset_info.json", json.dumps(info, indent=1))
    return info


@dataclass
class _Index:
    """Of all staged structures: part, row in it, and the columns that decide where they go."""

    part: np.ndarray
    row: np.ndarray
    split: np.ndarray
    id_hash: np.ndarray
    fingerprint: np.ndarray
    keep: np.ndarray

    @classmethod
    def read(cls, parts: list[tuple[Path, StagedPart]]) -> _Index:
        names = ["split_code", "id_hash", "fingerprint"]
        tables = [pq.read_table(path, columns=names) for path, _ in parts]
        sizes = [table.num_rows for table in tables]
        columns = pa.concat_tables(tables) if tables else pa.table({name: [] for name in names})
        split, id_hash, fingerprint = (columns[name].to_numpy() for name in names)
        part = np.repeat(np.arange(len(parts)), sizes)
        row = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0, int)
        return cls(part, row, split, id_hash, fingerprint, np.ones(len(part), bool))


def _texts(
    parts: list[tuple[Path, StagedPart]], index: _Index, rows: np.ndarray, name: str
) -> dict[int, Any]:
    """A column's values at some rows of the index; reads only the parts that hold them."""
    values: dict[int, Any] = {}
    for part in np.unique(index.part[rows]):
        own = rows[index.part[rows] == part]
        column = pq.read_table(parts[part][0], columns=[name])[name].take(pa.array(index.row[own]))
        values |= dict(zip(own.tolist(), column.to_pylist(), strict=True))
    return values


def _repeated_ids(
    parts: list[tuple[Path, StagedPart]], index: _Index
) -> list[tuple[int, dict[str, Any]]]:
    """Row and quarantine entry of each structure whose id stands earlier already."""
    groups = near_duplicates.group_equal(index.id_hash)
    if not groups:
        return []
    rows = np.sort(np.concatenate(groups))
    ids, records = (_texts(parts, index, rows, name) for name in ("structure_id", "record"))
    first: dict[str, int] = {}
    repeated = []
    for row in rows.tolist():
        earlier = first.setdefault(ids[row], row)
        if earlier == row:
            continue
        where = f"record {records[earlier]} of {parts[index.part[earlier]][1].source}"
        reason = f"has duplicate id '{ids[row]}', that of {where}: make ids unique or leave one out (skip_bad=true)"
        file = parts[index.part[row]][1].source
        repeated.append((row, {"file": file, "record": records[row], "reason": reason}))
    return repeated


def _plan(
    out: Path, parts: list[tuple[Path, StagedPart]], index: _Index, shard_size: int
) -> list[ShardPlan]:
    plans = []
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(index.keep & (index.split == code))
        for number, first in enumerate(range(0, len(rows), shard_size)):
            own = rows[first : first + shard_size]
            pieces = [
                (parts[part][0], index.row[own[index.part[own] == part]])
                for part in np.unique(index.part[own])
            ]
            plans.append(ShardPlan(out / f"{split}-{number:05d}.parquet", split, pieces))
    return plans


def write_planned(plan: ShardPlan) -> tuple[dict[str, Any], Census]:
    """Write one shard; returns its entry for dataset_info.json and its census."""
    pieces = [
        pq.read_table(path, columns=ARROW_SCHEMA.names).take(pa.array(rows))
        for path, rows in plan.pieces
    ]
    table = pa.concat_tables(pieces).combine_chunks()
    census = Census()
    census.add_table(table, plan.split)
    return write_shard(table, plan.path), census


def _write_near_duplicates(
    out: Path, parts: list[tuple[Path, StagedPart]], index: _Index
) -> dict[str, Any]:
    """List groups of near duplicates in duplicates.jsonl; returns their counts."""
    kept = np.flatnonzero(index.keep)
    groups = [kept[rows] for rows in near_duplicates.group_equal(index.fingerprint[kept])]
    if groups:
        shown = [rows[: near_duplicates.SHOWN_IDS] for rows in groups]
        ids = _texts(parts, index, np.concatenate(shown), "structure_id")
        lines = []
        for rows, first in zip(groups, shown, strict=True):
            splits = {
                split: int((index.split[rows] == code).sum()) for code, split in enumerate(SPLITS)
            }
            lines.append(
                json.dumps(
                    {
                        "num_structures": splits,
                        "structure_ids": [ids[row] for row in first.tolist()],
                    }
                )
            )
        write_atomically(out / "duplicates.jsonl", "\n".join(lines) + "\n")
    return near_duplicates.summarise(groups, index.split)
