"""Source file -> sharded Parquet with dataset_info.json and census.json.

The info file is written last: a folder without it is an unfinished conversion, which simply runs again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from pydantic import Field, field_validator
from rich.progress import track

from .census import Census
from .schema import SCHEMA_VERSION, SPLITS, BadRecordError, Structure
from .shards import SHARD_SIZE, BrokenDataSetError, read_info, write_atomically, write_shard
from .sources import SourceConfig, check_columns_exist, read_structures, source_fingerprint
from .unit_check import refuse_suspicious_units


# what a conversion writes, under final or temporary names; nothing else in its folder is touched
OWN_FILE = re.compile(
    r"\.?((train|valid|test)-\d{5}\.parquet|dataset_info\.json|census\.json|rejected\.jsonl)(\.tmp\d+)?"
)


class ConvertConfig(SourceConfig):
    """How a source becomes a data set: its columns, and how it is split."""

    valid_share: float = Field(default=0.1, ge=0, lt=1, description="share of groups held out for validation")
    test_share: float = Field(default=0.1, ge=0, lt=1, description="share of groups held out for testing")
    licence: str = Field(default="not stated", description="licence of the data, for the card")
    description: str = Field(default="", description="where the data comes from, for the card")
    with_elements: list[str] = Field(default=[], description="keep structures with any of these only")
    without_elements: list[str] = Field(default=[], description="leave out structures with any of these")
    skip_bad: bool = Field(default=False, description="set bad records aside in rejected.jsonl, go on")

    @field_validator("with_elements", "without_elements")
    @classmethod
    def _symbols(cls, symbols: list[str]) -> list[str]:
        unknown = [symbol for symbol in symbols if symbol not in chemical_symbols[1:]]
        if unknown:
            raise ValueError(f"{', '.join(map(str, unknown))}: not an element symbol")
        return symbols


def convert(source: Path | str, out: Path | str, config: ConvertConfig) -> dict[str, Any]:
    """Convert a source of any kind into the folder `out`; returns the content of its dataset_info.json.

    A finished conversion of the same bytes with the same config is left as it is.  Raises BadRecordError for a
    bad record, with nothing under a final name but whole shards, and UnitError for labels that look wrong.
    """
    source, out = str(source), Path(out)
    if out.is_file():
        raise BrokenDataSetError(f"{out}: is a file: name a folder for the data set")
    check_columns_exist(source, config)
    name = Path(source).name if Path(source).exists() else source
    origin = {
        "file": name,
        "sha256": source_fingerprint(source, config),
        "config": config.model_dump(mode="json"),
    }
    if finished := _finished(out, origin):
        return finished
    if not config.trust_units:
        refuse_suspicious_units(source, config)
    rejected: list[dict[str, str]] | None = [] if config.skip_bad else None
    structures = (s for s in read_structures(source, config, rejected) if _wanted(s, config))
    shown = track(structures, description=f"converting {name}", transient=True)
    return write_data_set(shown, out, origin, config, rejected)


def write_data_set(
    structures: Iterable[Structure],
    out: Path,
    origin: dict[str, Any],
    config: ConvertConfig,
    rejected: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Write checked structures as a data set: shards, rejected records, census, and dataset_info.json last."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.iterdir():
        if OWN_FILE.fullmatch(stale.name):
            stale.unlink()
    writer, census = _SplitWriter(out), Census()
    for structure in structures:
        key = structure.structure_id if config.split_by == "structure" else structure.group
        split = structure.split or split_of(key, config)
        writer.add(structure, split)
        census.add(structure, split)
    writer.close()
    if not writer.counts["train"]:
        raise BadRecordError(f"{origin['file']}: leaves no structure to train on: check the splits and element filters")
    if rejected:
        write_atomically(out / "rejected.jsonl", "".join(json.dumps(row) + "\n" for row in rejected))
    write_atomically(out / "census.json", json.dumps(census.to_dict(), indent=1))
    info = {
        "schema_version": SCHEMA_VERSION,
        "units": {"length": "A", "energy": "eV", "forces": "eV/A", "stress": "eV/A^3, tensile-positive"},
        "licence": config.licence,
        "description": config.description,
        "source": origin,
        "num_structures": writer.counts,
        "num_rejected": len(rejected or []),
        "levels_of_theory": census.levels,
        "shards": writer.shards,
    }
    write_atomically(out / "dataset_info.json", json.dumps(info, indent=1))
    return info


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


@dataclass
class _SplitWriter:
    """Buffers structures per split and writes a shard whenever one is full."""

    out: Path
    shards: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, list[Structure]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def add(self, structure: Structure, split: str) -> None:
        self.buffers[split].append(structure)
        self.counts[split] += 1
        if len(self.buffers[split]) == SHARD_SIZE:
            self._flush(split)

    def close(self) -> None:
        for split in SPLITS:
            if self.buffers[split]:
                self._flush(split)

    def _flush(self, split: str) -> None:
        index = sum(name.startswith(f"{split}-") for name in self.shards)
        name = f"{split}-{index:05d}.parquet"
        self.shards[name] = write_shard(self.buffers[split], self.out / name)
        self.buffers[split] = []
