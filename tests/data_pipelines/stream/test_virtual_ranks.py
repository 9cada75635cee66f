"""Virtual ranks: the same batches in every step on any number of ranks.

Also when that number changes on the way.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from evenfield.data_pipelines.stream import source as source_module
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.mixture import MixingConfig
from evenfield.data_pipelines.stream.training_stream import StreamError
from evenfield.data_pipelines.stream.virtual_ranks import VirtualRanks, states_of_virtual_ranks


SETTINGS = {"edge_budget": 300, "atom_budget": 64, "window_blocks": 2, "look_ahead": 4}


class Run:
    """What the steps of a run on some ranks hold."""

    def __init__(self, folders: list[Path], world_size: int, lanes: int = 4) -> None:
        config, data = (
            StreamConfig(**SETTINGS, lanes=lanes),
            Collection([str(folder) for folder in folders]),
        )
        kind = {"cutoff": 3.2, "levels_of_theory": ["EMT", "EMT-scaled"], "world_size": world_size}
        self.ranks = [
            data.stream(config, MixingConfig(), rank=rank, **kind) for rank in range(world_size)
        ]

    def steps(self, number: int) -> list[set[tuple[str, ...]]]:
        """The batches of each step on all ranks, as structures."""
        sources = [rank.batches() for rank in self.ranks]
        steps = []
        for _ in range(number):
            taken = [
                batch
                for k, s in enumerate(sources)
                for batch in itertools.islice(s, self.ranks[k].num_virtual_ranks)
            ]
            steps.append({tuple(batch.structure_ids) for batch in taken})
        for source in sources:
            source.close()
        return steps

    def resumed(self, before: Run) -> Run:
        """From the states of another run's ranks, as a checkpoint holds them."""
        states = states_of_virtual_ranks(
            [json.loads(json.dumps(rank.state())) for rank in before.ranks]
        )
        for rank in self.ranks:
            rank.load_state(states)
        return self


@pytest.fixture
def folders(data_set, tmp_path) -> list[Path]:
    """The small data set twice, under two names."""
    return [Path(shutil.copytree(data_set, tmp_path / name)) for name in ("one", "two")]


def test_steps_hold_the_same_batches_on_any_number_of_ranks(data_set):
    whole = Run([data_set], 1).steps(20)
    assert all(len(step) == 4 for step in whole)
    for world_size in (2, 4):
        assert Run([data_set], world_size).steps(20) == whole
    assert Run([data_set], 4, lanes=0).steps(20) == whole  # virtual ranks are what ranks would read
    assert Run([data_set], 1, lanes=2).steps(20) != whole


@pytest.mark.parametrize("number", [1, 2])
def test_number_of_ranks_may_change_again_and_again(folders, number):
    """Of one data set and of a mixture of two: 1, 2, 4, 2 and 1 ranks."""
    whole = Run(folders[:number], 1).steps(25)
    run, steps = Run(folders[:number], 1), []
    for world_size in (2, 4, 2, 1, 1):
        steps += run.steps(5)
        run = Run(folders[:number], world_size).resumed(run)
    assert steps == whole


def test_epoch_holds_every_structure_once_over_a_change_of_ranks(data_set, train_structures):
    run = Run([data_set], 2, lanes=2)
    seen = Counter(name for step in run.steps(3) for batch in step for name in batch)
    run = Run([data_set], 1, lanes=2).resumed(run)
    for stream in run.ranks[0].streams:
        source = stream.batches()
        while stream.epoch == 0:
            seen.update(next(source).structure_ids)
        source.close()
    assert seen == Counter(s.structure_id for s in train_structures)


def test_another_number_of_virtual_ranks_takes_up_the_rest(data_set, train_structures):
    before = Run([data_set], 1, lanes=2)
    seen = Counter(name for step in before.steps(3) for batch in step for name in batch)
    (rest,) = Run([data_set], 1, lanes=0).resumed(before).ranks
    source = rest.batches()
    while rest.epoch == 0:
        seen.update(next(source).structure_ids)
    source.close()
    assert seen == Counter(s.structure_id for s in train_structures)


def test_weights_are_fitted_once_for_all_virtual_ranks(data_set, monkeypatch):
    calls, fit = [], source_module.fit_weights
    monkeypatch.setattr(source_module, "fit_weights", lambda *a: calls.append(a) or fit(*a))
    run = Run([data_set], 1)
    run.steps(2)
    assert len({id(stream.weights) for stream in run.ranks[0].streams}) == 1 and len(calls) == 1


def test_virtual_ranks_that_cannot_be_divided_are_refused(data_set):
    fault = r"stream\.lanes=4 cannot be divided evenly among 3 ranks: set a multiple"
    with pytest.raises(StreamError, match=fault):
        Run([data_set], 3)


def test_one_rank_without_the_setting_has_no_virtual_ranks(data_set):
    assert not isinstance(Run([data_set], 1, lanes=0).ranks[0], VirtualRanks)
