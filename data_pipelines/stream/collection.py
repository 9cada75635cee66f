"""The data sets of a run, one or several, seen as one: counts, census, structures, stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..census.census import count_shards, read_census
from ..store.blocks import BlockReader, iter_structures
from ..store.shards import read_info
from ..structure import Structure
from .mixture import MixingConfig, Mixture, shares_of
from .stream import SharedWeights, Stream, StreamConfig
from .virtual_ranks import Lanes, lanes_of_rank


class Collection:
    """Converted data sets, checked when opened; raises BrokenDataSetError for a folder that is none."""

    def __init__(self, folders: list[str]) -> None:
        if not folders:
            raise ValueError("data names no data set: give a folder, or several as data=[one,two]")
        self.folders = [Path(folder) for folder in folders]
        self.infos = [read_info(folder) for folder in self.folders]

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders))

    def num_structures(self, split: str) -> int:
        """Structures of a split in all sets."""
        return sum(info["num_structures"][split] for info in self.infos)

    def structures(self, split: str) -> Iterator[Structure]:
        """All structures of a split, set after set."""
        return chain.from_iterable(iter_structures(folder, split) for folder in self._with(split))

    def sample(self, split: str, number: int) -> list[Structure]:
        """Some structures of a split, evenly spaced, equally many of each set."""
        folders = self._with(split)
        return [
            s
            for folder in folders
            for s in BlockReader(folder, split).sample(-(-number // len(folders)))
        ]

    def census(self) -> dict[str, Any]:
        """The census of all sets together; E0 of a level of theory that several have are fitted to all of them."""
        if len(self.folders) == 1:
            return read_census(self.folders[0])
        pairs = zip(self.folders, self.infos, strict=True)
        return count_shards(
            [folder / name for folder, info in pairs for name in info["shards"]]
        ).to_dict()

    def stream(
        self,
        config: StreamConfig,
        mixing: MixingConfig,
        *,
        cutoff: float,
        levels_of_theory: list[str],
        rank: int,
        world_size: int,
    ) -> Stream | Mixture | Lanes:
        """The training stream of one rank: that of the one set, or a mixture; or several lanes of it."""
        folders = self._with("train")
        counts = [read_info(folder)["num_structures"]["train"] for folder in folders]
        weights = [SharedWeights() for _ in folders]

        def lane(number: int, of: int) -> Stream | Mixture:
            streams = [
                Stream(
                    folder,
                    config,
                    cutoff=cutoff,
                    levels_of_theory=levels_of_theory,
                    rank=number,
                    world_size=of,
                    weights=own,
                )
                for folder, own in zip(folders, weights, strict=True)
            ]
            if len(streams) == 1:
                return streams[0]
            return Mixture(streams, np.asarray(shares_of(folders, counts, mixing)))

        if not config.lanes:
            return lane(rank, world_size)
        return Lanes(
            [lane(number, config.lanes) for number in lanes_of_rank(config.lanes, rank, world_size)]
        )

    def _with(self, split: str) -> list[Path]:
        return [
            f
            for f, info in zip(self.folders, self.infos, strict=True)
            if info["num_structures"][split]
        ]
