"""The data sets of a run, treated as one: their counts, census, structures and stream."""

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


# eV/atom; largest difference between the E0 of two data sets with the same zero of energy. Tungsten
# has the largest cohesive energy of all solids, 8.9 eV/atom. So even if one data set has free atoms
# and the other has solids, their E0 differ by less.
MOST_BETWEEN_ZEROS = 9.0


class Collection:
    """The converted data sets of a run; the constructor checks that they fit together.

    It raises BrokenDataSetError for a folder that is not a converted data set, StreamError if there
    are no folders, if two data sets spell a level of theory differently, or if they disagree about
    its zero of energy, and PhysicsError if different physics were subtracted from their labels.
    """

    def __init__(self, folders: list[str]) -> None:
        if not folders:
            raise StreamError(
                "data names no data set", remedy="give a folder, or several as data=[one,two]"
            )
        self.folders = [local_path(folder) for folder in folders]
        self.infos = [read_info(folder) for folder in self.folders]
        self.physics = common_physics(self.folders, self.infos)
        """Physics that was subtracted from the labels of all data sets; None if none was."""
        if len(self.folders) > 1:
            _check_spellings(self.folders, self.infos)
            _check_zeros(self.folders)
        self._census: dict[str, Any] | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders))

    def num_structures(self, split: str) -> int:
        """Number of structures of a split in all data sets."""
        return sum(info["num_structures"][split] for info in self.infos)

    def structures(self, split: str) -> Iterator[Structure]:
        """Yield all structures of a split, one data set after the other."""
        return chain.from_iterable(
            iter_structures(folder, split) for folder in self.folders_with(split)
        )

    def sample(self, split: str, number: int) -> list[Structure]:
        """A sample of at least `number` structures, with equally many from each data set.

        The sample is smaller if there are not enough structures.
        """
        folders = self.folders_with(split)
        sample: list[Structure] = []
        for folder in folders:
            sample += BlockReader(folder, split).sample(-(-number // len(folders)))
        return sample

    def census(self) -> dict[str, Any]:
        """The census of all data sets together; it is cached, so callers must not change it.

        If several data sets share a level of theory, its E0 are fitted to all of them together.
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
        """Level of theory -> domain of the training structures of all data sets.

        A level is left out if one of its data sets was converted before domains were recorded.
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
                    # the domain is missing or unreadable
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
        """The training stream of one rank, for a single data set or a mixture of several.

        With `stream.lanes`, it consists of the virtual ranks that this rank serves.

        cutoff: cutoff of the neighbour lists, A.
        levels_of_theory: the model's heads, in order.

        Raises StreamError if the shares do not match the data sets, or if the virtual ranks cannot
        be divided evenly.
        """
        parts = self._parts(mixing)
        # weights are fitted once for all virtual ranks of this process
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
        """What is mixed: the data sets, or every level of theory of every data set."""
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
    """A component of a mixture: a data set, or one level of theory of it."""

    folder: Path
    level: str | None = None
    """The level of theory; None for all levels of the data set."""
    num_structures: int = 0
    """Number of training structures at `level`."""


def _check_spellings(folders: list[Path], infos: list[dict[str, Any]]) -> None:
    """Raise StreamError if two data sets spell the same level of theory differently.

    The level would get two heads, each of which would learn from only a part of the data.
    """
    seen: dict[str, Path] = {}
    for folder, info in zip(folders, infos, strict=True):
        for level in info["levels_of_theory"]:
            other = spelt_alike(level, seen)
            # if a single data set has both spellings, its conversion has dealt with them
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
    """Raise StreamError if two data sets have different zeros of energy for one level of theory.

    They would share a head, which could fit neither of them. Elements whose E0 is undetermined are
    ignored.
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

            # the median, because the E0 of an element with few structures may be far off
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
