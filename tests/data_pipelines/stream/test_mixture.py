"""Mixing: shares kept over every stretch, exact under resume, epochs of each data set."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfield.data_pipelines.stream.mixture import MixingConfig, Mixture, shares_of
from evenfield.data_pipelines.stream.stream import Stream, StreamConfig
from evenfield.data_pipelines.stream.training_stream import StreamError


LEVELS = ["EMT", "EMT-scaled"]


@pytest.fixture
def folders(data_set, tmp_path) -> list[Path]:
    """The small data set twice, under two names."""
    return [Path(shutil.copytree(data_set, tmp_path / name)) for name in ("one", "two")]


def mixture(
    folders: list[Path], shares: list[float], rank: int = 0, world_size: int = 1
) -> Mixture:
    config = StreamConfig(edge_budget=300, atom_budget=64, window_blocks=2)
    streams = [
        Stream(
            folder, config, cutoff=3.2, levels_of_theory=LEVELS, rank=rank, world_size=world_size
        )
        for folder in folders
    ]
    return Mixture(streams, np.array(shares))


def take(mixed: Mixture, number: int) -> list[list[str]]:
    source = mixed.batches()
    taken = [batch.structure_ids for batch in itertools.islice(source, number)]
    source.close()
    return taken


class Sources(Mixture):
    """The schedule alone."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__([], np.array(shares))


@given(
    st.lists(st.floats(0.02, 1), min_size=2, max_size=5),
    st.integers(0, 100_000),
    st.integers(50, 500),
)
def test_every_stretch_of_the_schedule_holds_the_shares(shares, first, length):
    schedule = Sources(shares)
    counts = Counter(schedule.source_of(n) for n in range(first, first + length))
    for source, share in enumerate(schedule.shares):
        assert (
            abs(counts[source] - share * length) < 4.0
        )  # random draws: up to 3 sqrt(500) / 2 = 34


def test_every_rank_gets_the_shares(folders):
    schedule = Sources([0.7, 0.3])
    for rank in range(4):
        counts = Counter(schedule.source_of(n * 4 + rank) for n in range(500))
        assert counts[0] == pytest.approx(350, abs=5)


def test_batches_come_from_the_scheduled_source_in_its_own_order(folders):
    mixed = mixture(folders, [0.6, 0.4])
    alone = [take(Mixture([stream], np.ones(1)), 40) for stream in mixture(folders, [1, 1]).streams]
    places = [iter(batches) for batches in alone]
    for number, batch in enumerate(take(mixed, 40)):
        assert batch == next(places[mixed.source_of(number)])
    assert mixed.drawn == 40


def test_resume_is_identical(folders):
    whole = take(mixture(folders, [0.6, 0.4]), 30)
    stopped = mixture(folders, [0.6, 0.4])
    first = take(stopped, 11)
    resumed = mixture(folders, [0.6, 0.4])
    resumed.load_state([json.loads(json.dumps(stopped.state()))])
    assert first + take(resumed, 19) == whole


def test_another_number_of_ranks_goes_on_with_the_schedule(folders):
    stopped = [mixture(folders, [0.6, 0.4], rank, 2) for rank in range(2)]
    for rank in range(2):
        take(stopped[rank], 6)
    resumed = mixture(folders, [0.6, 0.4])
    resumed.load_state([s.state() for s in stopped])
    assert resumed.drawn == 12


def test_data_set_that_was_not_there_is_refused_at_resume(folders):
    one = mixture(folders[:1], [1.0])
    with pytest.raises(StreamError, match="two: was not part of the run that is resumed"):
        mixture(folders, [0.5, 0.5]).load_state([one.state()])


def test_shares_go_by_size_temperature_or_statement():
    folders = [Path("a/x"), Path("b/y")]
    assert shares_of(folders, [100, 10_000], MixingConfig()).tolist() == [100, 10_000]
    np.testing.assert_allclose(
        shares_of(folders, [100, 10_000], MixingConfig(temperature=2)), [10, 100]
    )
    assert shares_of(folders, [1, 1], MixingConfig(shares={"y": 0.9, "x": 0.1})).tolist() == [
        0.1,
        0.9,
    ]
    with pytest.raises(StreamError, match=r"mixing\.shares must give each of x, y a share above 0"):
        shares_of(folders, [1, 1], MixingConfig(shares={"x": 1.0}))
    with pytest.raises(StreamError, match="must have different folder names: a/x, c/x"):
        shares_of([Path("a/x"), Path("c/x")], [1, 1], MixingConfig())
