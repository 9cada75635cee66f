"""Several data sets as one stream: each batch mixes their structures in given shares."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ...core.settings import Settings
from ..batch import Batch
from ..census.weights import LevelWeights
from ..structure import Structure
from .config import StreamConfig
from .source import Source
from .training_stream import StreamError
from .windows import WindowStream


Count = Literal["structures", "atoms", "edges"]


class MixingConfig(Settings):
    """How much of the training data comes from each data set."""

    temperature: float = Field(
        default=1.0,
        ge=1,
        description="share ~ size^(1/temperature): 1 by size, large for equal shares",
    )
    shares: dict[str, float] = Field(
        default={},
        description="or stated: folder name -> share of the structures (or see count), for all",
    )
    count: Count = Field(
        default="structures",
        description="what sizes and shares count; of atoms and edges the mean per structure counts",
    )
    level_shares: dict[str, float] = Field(
        default={},
        description="or stated: level of theory -> share of the structures, for all of them; also "
        "of one data set",
    )

    @model_validator(mode="after")
    def _shares_of_one_kind(self) -> Self:
        if self.level_shares and self.shares:
            raise ValueError("mixing.shares and mixing.level_shares exclude each other: set one")
        if self.level_shares and self.count != "structures":
            raise ValueError("mixing.level_shares are of structures: leave out mixing.count")
        return self


@dataclass(frozen=True)
class Schedule:
    """Which positions of each data set a window of the mixture holds.

    The structure at position k of a data set gets the time (k + 1/2) / share, with shares that sum
    to 1. A window holds the structures whose times lie between one multiple of its length and the
    next, sorted by time. So after any n structures, the count of each data set is within
    (1 + number of data sets) / 2 of share * n. Random draws would deviate by about the square root
    of n. The counts depend only on the number of the window, so they are exact after resuming on
    any number of ranks.
    """

    first_window: int
    """The first window of this schedule; earlier windows followed another one."""
    length: int
    """Structures in a window, up to one more or less from each data set."""
    shares: dict[str, float]
    """Name of each data set -> share of the structures; they sum to 1."""
    starts: dict[str, int]
    """Name of each data set -> its position at the beginning of `first_window`."""

    def position(self, name: str, window: int) -> int:
        """The position of a data set at the beginning of a window."""
        time = (window - self.first_window) * self.length
        # the number of k >= 0 with (k + 1/2) / share < time
        return self.starts[name] + max(0, math.ceil(self.shares[name] * time - 0.5))

    def time(self, name: str, position: float) -> float:
        """The time of the structure at a position, counted from the start of `first_window`."""
        return (position - self.starts[name] + 0.5) / self.shares[name]

    def followed_by(self, window: int, length: int, shares: dict[str, float]) -> Schedule:
        """A schedule with new shares that takes over from this one at `window`."""
        starts = {name: self.position(name, window) for name in self.shares}
        return Schedule(window, length, shares, starts)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON content."""
        sources = {name: [self.starts[name], share] for name, share in self.shares.items()}
        return {"first_window": self.first_window, "length": self.length, "sources": sources}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Schedule:
        """The inverse of `to_dict`."""
        shares = {name: share for name, (_, share) in content["sources"].items()}
        starts = {name: start for name, (start, _) in content["sources"].items()}
        return cls(content["first_window"], content["length"], shares, starts)


class Mixture(WindowStream):
    """Batches with structures of several data sets, each with its own epochs.

    The structures of each data set come in the same order as without the mixture. A window of the
    mixture is about as long as one window of each data set together, so that few windows of a data
    set are read by two ranks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        shares: np.ndarray,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Mix `sources` by `shares` of the structures, one per source; they need not sum to 1."""
        super().__init__(config, rank, world_size)
        self.sources = {source.name: source for source in sources}
        names = list(self.sources)
        normalised = (shares / shares.sum()).tolist()
        largest_block = max(max(source.blocks.sizes) for source in sources)
        self._schedules = [
            Schedule(
                first_window=0,
                length=len(sources) * config.window_blocks * largest_block,
                shares=dict(zip(names, normalised, strict=True)),
                starts=dict.fromkeys(names, 0),
            )
        ]

    @property
    def schedule(self) -> Schedule:
        """The schedule of the newest windows."""
        return self._schedules[-1]

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows that hold every structure of every data set at least once.

        This holds without weights.
        """
        times = [
            source.num_structures / self.schedule.shares[name]
            for name, source in self.sources.items()
        ]
        return math.ceil(max(times) / self.schedule.length)

    @property
    def description(self) -> str:
        """The folders, for error messages."""
        return ", ".join(str(source.folder) for source in self.sources.values())

    def structures(self, window: int) -> Iterator[tuple[Source, Structure]]:
        """Yield the structures of a window in order, each with its data set."""
        schedule = self._schedule_of(window)
        streams = [
            _timed_structures(schedule, name, source, window)
            for name, source in self.sources.items()
        ]
        # structures with equal times are in the order of the data sets
        for _, source, structure in heapq.merge(*streams, key=lambda entry: entry[0]):
            yield source, structure

    def graphs(self, window: int) -> Iterator[Batch]:
        """Yield the structures of a window in order, each as a batch of one."""
        for source, structure in self.structures(window):
            yield source.graph(structure)

    def epoch_of(self, window: int) -> int:
        """The epoch of the first data set at the beginning of a window."""
        name, source = next(iter(self.sources.items()))
        return self._schedule_of(window).position(name, window) // source.num_structures

    def state(self) -> dict[str, Any]:
        """The state of this rank, as JSON content.

        The weights are included, because fitting them again would delay every resume.
        """
        weights = {name: source.weights.to_dict() for name, source in self.sources.items()}
        schedules = [schedule.to_dict() for schedule in self._schedules]
        return self.progress.to_dict() | {"schedules": schedules, "weights": weights}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Resume from the states of all ranks; their number may differ from the present one.

        If the shares have changed, windows that were already begun keep the old shares. So every
        structure still appears once in each epoch of its data set.

        Raises StreamError if the data sets differ from those of the saved run.
        """
        saved = states[0].get("schedules")
        if saved is None:
            raise StreamError(
                "the checkpoint has no position in a mixture of structures: its batches came from "
                "one data set each",
                file=self.description,
                remedy="start a new run",
            )
        schedules = [Schedule.from_dict(content) for content in saved]
        self._check_names(schedules[-1])
        self._continue_from(states)
        for name, source in self.sources.items():
            source.shared_weights.fitted = LevelWeights.from_dict(states[0]["weights"][name])

        length, shares = self.schedule.length, self.schedule.shares
        if (schedules[-1].length, schedules[-1].shares) != (length, shares):
            untouched = max(self.progress.first_untouched(), schedules[-1].first_window)
            schedules.append(schedules[-1].followed_by(untouched, length, shares))
        unfinished = self.progress.first_unfinished()
        self._schedules = [
            schedule
            for schedule, following in zip(schedules, [*schedules[1:], None], strict=True)
            # drop schedules whose windows are all finished
            if following is None or following.first_window > unfinished
        ]

    def _check_names(self, schedule: Schedule) -> None:
        for name, source in self.sources.items():
            if name not in schedule.shares:
                raise StreamError(
                    "was not part of the run that is resumed",
                    file=source.folder,
                    remedy="start a new run with it",
                )
        missing = schedule.shares.keys() - self.sources.keys()
        if missing:
            raise StreamError(
                f"the run that is resumed also had {', '.join(sorted(missing))}",
                remedy="name it in data again, or start a new run",
            )

    def _schedule_of(self, window: int) -> Schedule:
        return next(one for one in reversed(self._schedules) if one.first_window <= window)


def _timed_structures(
    schedule: Schedule, name: str, source: Source, window: int
) -> Iterator[tuple[float, Source, Structure]]:
    """Yield (time, data set, structure) for one data set's structures in a window."""
    first = schedule.position(name, window)
    last = schedule.position(name, window + 1)
    for position, structure in source.between(first, last):
        yield schedule.time(name, position), source, structure


def shares_of(sources: Sequence[Source], config: MixingConfig) -> np.ndarray:
    """The share of the structures for each source, in order and not normalised.

    Raises StreamError if the stated shares do not match the folders, if two folders have the same
    name, or if edges are counted in a data set without edges.
    """
    names = _names_of([source.folder for source in sources], config)
    sizes = np.array([_size_of_structure(source, config.count) for source in sources])
    if config.shares:
        shares = np.array([config.shares[name] for name in names])
    else:
        numbers = np.array([source.num_structures for source in sources])
        shares = (numbers * sizes) ** (1.0 / config.temperature)
    # a data set with large structures needs fewer of them to reach its share
    return shares / sizes


def shares_of_levels(
    sources: Sequence[Source], sizes: Sequence[int], config: MixingConfig
) -> np.ndarray:
    """The share of the positions for each source of a single level, in order and not normalised.

    sizes: number of structures of the level in each source.

    Sources of the same level divide its share by size and temperature. In each source, structures
    of other levels occupy positions but are left out. Its share of positions is therefore larger
    than its share of structures.

    Raises StreamError if the stated shares do not match the levels.
    """
    _names_of(list(dict.fromkeys(source.folder for source in sources)), config)
    levels = [source.only_level for source in sources]
    stated = config.level_shares
    if set(stated) != set(levels) or min(stated.values()) <= 0:
        names = ", ".join(str(level) for level in dict.fromkeys(levels))
        raise StreamError(f"mixing.level_shares must give each of {names} a share above 0")
    powers = np.array(sizes, dtype=float) ** (1.0 / config.temperature)
    shares = np.empty(len(sources))
    for level, share in stated.items():
        own = np.array([other == level for other in levels])
        shares[own] = share * powers[own] / powers[own].sum()
    filled = [size / source.num_structures for source, size in zip(sources, sizes, strict=True)]
    return shares / np.array(filled)


def _size_of_structure(source: Source, count: Count) -> float:
    """Mean size of a structure in the unit that shares count: 1, its atoms, or its edges."""
    if count == "structures":
        return 1.0
    if count == "atoms":
        return source.atoms_per_structure()
    edges = source.edges_per_structure()
    if not edges:
        raise StreamError(
            "has no edges, so no number of its structures could give a share of them",
            file=source.folder,
            remedy="set mixing.count=atoms",
        )
    return edges


def _names_of(folders: Sequence[Path], config: MixingConfig) -> list[str]:
    """The names of the data sets.

    Raises StreamError if two names are equal or if the stated shares do not match them.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise StreamError(
            f"data sets to mix must have different folder names: {', '.join(map(str, folders))}"
        )
    stated = config.shares
    if stated and (set(stated) != set(names) or min(stated.values()) <= 0):
        raise StreamError(f"mixing.shares must give each of {', '.join(names)} a share above 0")
    return names
