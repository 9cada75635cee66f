"""The data sets of a run, one or several, seen as one: counts, census, structures, stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...core.addresses import local_path
from ...core.level_names import spelt_alike
from ..census.census import count_shards, read_census
from ..census.domain import LevelDomain
from ..physics.residual import common_physics
from ..store.blocks import BlockReader, iter_structures
from ..store.shards import read_info
from ..structure import Structure
from .config import StreamConfig
from .mixture import MixingConfig, Mixture, shares_of, shares_of_levels
from .source import SharedWeights, Source
from .stream import Stream
from .training_stream import StreamError, TrainingStream
from .virtual_ranks import VirtualRanks, virtual_ranks_of


# eV/atom between the E0 of two data sets; no solid has a larger cohesive energy than tungsten, 8.9
# eV/atom, so even free atoms in one set and solids in the other differ by less
MOST_BETWEEN_ZEROS = 9.0


class Collection:
    """Converted data sets, checked when they are opened.

    Raises BrokenDataSetError for a folder that is not a converted data set, and StreamError without
    any folder, and where two data sets spell a level of theory in two ways or disagree about its
    zero. Raises PhysicsError where their labels are minus different physics.
    """

    def __init__(self, folders: list[str]) -> None:
        if not folders:
            raise StreamError(
                "data names no data set", remedy="give a folder, or several as data=[one,two]"
            )
        self.folders = [local_path(folder) for folder in folders]
        self.infos = [read_info(folder) for folder in self.folders]
        self.physics = common_physics(self.folders, self.infos)
        """What was subtracted from the labels of all of them; None for labels as they are."""
        if len(self.folders) > 1:
            _check_spellings(self.folders, self.infos)
            _check_zeros(self.folders)
        self._census: dict[str, Any] | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders))

    def num_structures(self, split: str) -> int:
        """Structures of a split in all data sets."""
        return sum(info["num_structures"][split] for info in self.infos)

    def structures(self, split: str) -> Iterator[Structure]:
        """All structures of a split, one data set after the other."""
        return chain.from_iterable(
            iter_structures(folder, split) for folder in self.folders_with(split)
        )

    def sample(self, split: str, number: int) -> list[Structure]:
        """At least `number` structures if there are as many, equally many of each data set."""
        folders = self.folders_with(split)
        sample: list[Structure] = []
        for folder in folders:
            sample += BlockReader(folder, split).sample(-(-number // len(folders)))
        return sample

    def census(self) -> dict[str, Any]:
        """The census of all data sets together, counted once and not to be changed.

        E0 of a level of theory that several sets have are fitted to all of them.
        """
        if self._census is None:
            self._census = self._count()
        return self._census

    def _count(self) -> dict[str, Any]:
        if len(self.folders) == 1:
            return read_census(self.folders[0])
        shards = []
        for folder, info in zip(self.folders, self.infos, strict=True):
            shards += [folder / name for name in info["shards"]]
        return count_shards(shards).to_dict()

    def domains(self) -> dict[str, LevelDomain]:
        """Level of theory -> where the training structures of all data sets lie.

        A level is left out if one of its data sets was converted before domains were collected.
        """
        found: dict[str, LevelDomain] = {}
        incomplete = set()
        for folder in self.folders_with("train"):
            for level, row in read_census(folder)["levels_of_theory"].items():
                if not row["structures"].get("train"):
                    continue
                try:
                    own = LevelDomain.model_validate(row.get("domain"))
                except ValidationError:
                    # none, or one that nobody can read
                    incomplete.add(level)
                    continue
                found[level] = found[level].merged(own) if level in found else own
        return {level: domain for level, domain in found.items() if level not in incomplete}

    def stream(
        self,
        config: StreamConfig,
        mixing: MixingConfig,
        *,
        cutoff: float,
        levels_of_theory: list[str],
        rank: int,
        world_size: int,
    ) -> TrainingStream:
        """The training stream of one rank: of the one data set, or of a mixture of several.

        With `stream.lanes` it is made of the virtual ranks that the rank serves.
        Raises StreamError for shares or virtual ranks that do not fit.
        """
        parts = self._parts(mixing)
        # fitted once for all virtual ranks of this process
        weights = {part.folder: SharedWeights() for part in parts}

        def sources() -> list[Source]:
            return [
                Source(
                    part.folder,
                    config,
                    cutoff=cutoff,
                    levels_of_theory=levels_of_theory,
                    weights=weights[part.folder],
                    only_level=part.level,
                )
                for part in parts
            ]

        is_mixture = len(parts) > 1 or bool(mixing.level_shares)
        if mixing.level_shares:
            shares = shares_of_levels(sources(), [part.num_structures for part in parts], mixing)
        elif is_mixture:
            shares = shares_of(sources(), mixing)

        def stream_of(own_rank: int, num_ranks: int) -> TrainingStream:
            if is_mixture:
                return Mixture(sources(), shares, config, rank=own_rank, world_size=num_ranks)
            (source,) = sources()
            return Stream(source, rank=own_rank, world_size=num_ranks)

        if not config.lanes:
            return stream_of(rank, world_size)
        own = virtual_ranks_of(config.lanes, rank, world_size)
        return VirtualRanks([stream_of(virtual_rank, config.lanes) for virtual_rank in own])

    def _parts(self, mixing: MixingConfig) -> list[_Part]:
        """What is mixed: data sets, or each level of theory of each of them."""
        folders = self.folders_with("train")
        if not mixing.level_shares:
            return [_Part(folder) for folder in folders]
        parts = []
        for folder in folders:
            for level, row in read_census(folder)["levels_of_theory"].items():
                number = row["structures"].get("train", 0)
                if number:
                    parts.append(_Part(folder, level, number))
        return parts

    def folders_with(self, split: str) -> list[Path]:
        """Folders of the data sets that have structures in a split."""
        pairs = zip(self.folders, self.infos, strict=True)
        return [folder for folder, info in pairs if info["num_structures"][split]]


@dataclass(frozen=True)
class _Part:
    """What has a share of its own in a mixture."""

    folder: Path
    level: str | None = None
    """None for all levels of theory of the folder."""
    num_structures: int = 0
    """Training structures of the level."""


def _check_spellings(folders: list[Path], infos: list[dict[str, Any]]) -> None:
    """Raise StreamError where two data sets spell one level of theory in two ways.

    It would get two heads, each of which learns from a part of the data.
    """
    seen: dict[str, Path] = {}
    for folder, info in zip(folders, infos, strict=True):
        for level in info["levels_of_theory"]:
            other = spelt_alike(level, seen)
            # a data set that has both was asked about them when it was converted
            if level not in seen and other is not None and seen[other] != folder:
                raise StreamError(
                    f"has the level of theory {level!r}, and {seen[other]} has {other!r}, which is "
                    "spelt almost alike and would get a head of its own",
                    file=folder,
                    remedy="convert one of them again with level_of_theory set to the other name",
                )
        for level in info["levels_of_theory"]:
            seen.setdefault(level, folder)


def _check_zeros(folders: list[Path]) -> None:
    """Raise StreamError where data sets give energies of one level different zeros.

    Their heads would be one, and could fit neither. Elements whose E0 a data set does not determine
    do not count.
    """
    first_with: dict[str, tuple[Path, dict[str, float]]] = {}
    for folder in folders:
        for level, row in read_census(folder)["levels_of_theory"].items():
            undetermined = set(row["undetermined"])
            e0 = {
                symbol: value for symbol, value in row["e0"].items() if symbol not in undetermined
            }
            if not e0:
                continue
            other_folder, other_e0 = first_with.setdefault(level, (folder, e0))
            shared = sorted(e0.keys() & other_e0.keys())
            if not shared:
                continue

            # the median, because E0 of an element in few structures may be far off
            differences = np.array([e0[symbol] - other_e0[symbol] for symbol in shared])
            difference = float(np.median(differences))
            if abs(difference) > MOST_BETWEEN_ZEROS:
                raise StreamError(
                    f"energies of {level!r} are {difference:+.1f} eV/atom from those of "
                    f"{other_folder} (median E0 of {len(shared)} elements), so the two have "
                    "different zeros",
                    file=folder,
                    remedy="convert it again with another level_of_theory, which gets a head of "
                    "its own",
                )
