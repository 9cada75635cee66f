"""The stream: complete, deterministic, within budget, exact under resume on any number of ranks."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.census.weights import (
    ElementWeights,
    LevelWeights,
    WeightConfig,
    num_copies,
)
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.state import StreamState
from evenfield.data_pipelines.stream.stream import Stream
from evenfield.data_pipelines.stream.training_stream import StreamError
from evenfield.data_pipelines.structure import Structure


LEVELS = ["EMT", "EMT-scaled"]


@pytest.fixture
def open_stream(data_set):
    """Streams over the small data set: 17 blocks of 4 structures in 9 windows."""

    def build(
        *, rank: int = 0, world_size: int = 1, levels: list[str] = LEVELS, **config
    ) -> Stream:
        config = {
            "edge_budget": 300,
            "atom_budget": 24,
            "window_blocks": 2,
            "look_ahead": 4,
        } | config
        source = Source(data_set, StreamConfig(**config), cutoff=3.2, levels_of_theory=levels)
        return Stream(source, rank=rank, world_size=world_size)

    return build


def ids(batches) -> list[list[str]]:
    return [batch.structure_ids for batch in batches]


def count(batches) -> Counter:
    return Counter(name for batch in batches for name in batch.structure_ids)


def at_epoch(stream: Stream, epoch: int) -> Stream:
    stream.progress = StreamState([(0, epoch * stream.windows_per_epoch - 1, 1)] if epoch else [])
    return stream


def epoch_of(stream: Stream) -> list[Batch]:
    """The rest of this rank's batches in its present epoch."""
    batches, epoch, source = [], stream.epoch, stream.batches()
    while stream.epoch == epoch:
        batches.append(next(source))
    source.close()
    return batches


def take(stream: Stream, number: int) -> list[Batch]:
    source = stream.batches()
    taken = list(itertools.islice(source, number))
    source.close()
    return taken


def resumed(stream: Stream, *stopped: Stream) -> Stream:
    stream.load_state([json.loads(json.dumps(other.state())) for other in stopped])
    return stream


def assert_same(one, other) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.structure_ids == b.structure_ids
        for name in ("positions", "edge_index", "cell_shifts", "head", "atom_weight"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        for name in ("energy", "forces"):
            assert torch.equal(a.labels[name], b.labels[name])
        assert torch.equal(a.structure_index, b.structure_index)


# --- an epoch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_epoch_holds_every_structure_exactly_once(open_stream, train_structures, world_size):
    streams = [open_stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [epoch_of(stream) for stream in streams]
    assert count(itertools.chain(*batches)) == Counter(s.structure_id for s in train_structures)
    assert all(batches)  # every rank has work


def test_batches_do_not_depend_on_the_number_of_ranks(open_stream):
    alone = {tuple(names) for names in ids(epoch_of(open_stream()))}
    streams = [open_stream(rank=rank, world_size=3) for rank in range(3)]
    assert {tuple(names) for s in streams for names in ids(epoch_of(s))} == alone


def test_structures_arrive_unchanged(open_stream, train_structures):
    originals: dict[str, Structure] = {s.structure_id: s for s in train_structures}
    for batch in epoch_of(open_stream()):
        for k, name in enumerate(batch.structure_ids):
            original = originals[name]
            atoms = batch.structure_index == k
            forces = batch.labels["forces"][atoms]
            assert batch.labels["energy"][k].item() == original.energy
            assert torch.equal(batch.positions[atoms], torch.tensor(original.positions))
            assert torch.equal(forces, torch.tensor(original.forces, dtype=torch.float32))
            assert LEVELS[batch.head[k]] == original.level_of_theory
            assert batch.labels["stress"][k].isnan().all() == (original.stress is None)


def test_order_is_fixed_by_seed_and_epoch(open_stream):
    first = ids(epoch_of(open_stream()))
    assert ids(epoch_of(open_stream())) == first
    assert ids(epoch_of(at_epoch(open_stream(), 1))) != first
    assert ids(epoch_of(open_stream(seed=1))) != first


def test_every_epoch_shuffles_both_blocks_and_structures(open_stream):
    config = {
        "window_blocks": 1,
        "look_ahead": 1,
        "edge_budget": 10**6,
        "atom_budget": 10**6,
    }  # a batch a block
    epochs = [ids(epoch_of(at_epoch(open_stream(**config), epoch))) for epoch in (0, 1)]
    blocks = [[set(batch) for batch in epoch] for epoch in epochs]
    assert blocks[0] != blocks[1]
    assert {*map(frozenset, blocks[0])} == {*map(frozenset, blocks[1])}
    places = [[[int(name.split("-")[1]) for name in batch] for batch in epoch] for epoch in epochs]
    shuffles = [
        [[sorted(batch).index(place) for place in batch] for batch in epoch] for epoch in places
    ]
    assert sum(a != b for a, b in zip(*shuffles, strict=True)) > len(shuffles[0]) / 2


def test_epoch_follows_epoch_in_another_order(open_stream):
    stream = open_stream()
    first = ids(epoch_of(stream))
    assert stream.epoch == 1
    assert ids(epoch_of(stream)) == ids(epoch_of(at_epoch(open_stream(), 1))) != first


def test_more_ranks_than_windows_share_epochs(open_stream, train_structures):
    """One window an epoch: rank r gets epochs r, r + 3, ..., and none of them waits."""
    for rank in range(3):
        stream = open_stream(rank=rank, world_size=3, window_blocks=100)
        assert stream.epoch == rank
        assert count(epoch_of(stream)) == Counter(s.structure_id for s in train_structures)
        assert stream.epoch == rank + 3


def test_shuffle_mixes_blocks(open_stream):
    windows = [name for batch in ids(epoch_of(open_stream(window_blocks=100))) for name in batch]
    places = [int(name.split("-")[1]) for name in windows]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(places))
    assert neighbours < len(places) / 4  # file order would make nearly all of them neighbours


def test_batches_respect_both_budgets_and_fill_them(open_stream):
    batches = epoch_of(open_stream())
    for batch in batches:
        assert batch.num_structures == 1 or (batch.num_edges <= 300 and batch.num_atoms <= 24)
    assert max(batch.num_structures for batch in batches) >= 4
    many = len(epoch_of(open_stream(edge_budget=100)))
    assert len(batches) < many < len(epoch_of(open_stream(edge_budget=1)))


def test_structure_larger_than_the_budget_comes_alone(open_stream, train_structures):
    batches = epoch_of(open_stream(atom_budget=4, edge_budget=10**6))
    assert all(batch.num_structures == 1 for batch in batches)
    assert max(batch.num_atoms for batch in batches) == 8
    assert count(batches) == Counter(s.structure_id for s in train_structures)


# --- weights


def levels_of(structures: list[Structure]) -> np.ndarray:
    return np.array([s.level_of_theory for s in structures], dtype=object)


def of_windows(stream: Stream, epoch: int) -> Counter:
    first = epoch * stream.windows_per_epoch
    windows = range(first, first + stream.windows_per_epoch)
    return Counter(s.structure_id for window in windows for s in stream.window(window))


@pytest.mark.parametrize("over", ["max", "mean"])
def test_copies_of_an_epoch_are_those_of_num_copies(open_stream, train_structures, over):
    stream = open_stream(weights=WeightConfig(beta=0.8, over=over), seed=3)
    numbers = np.concatenate([s.atomic_numbers for s in train_structures])
    starts = np.cumsum([0, *map(len, train_structures)])
    names = [s.structure_id for s in train_structures]
    levels = levels_of(train_structures)
    for epoch in (0, 1):
        copies = num_copies(stream.weights(numbers, starts, levels), names, 3, epoch)
        assert copies.max() > 1 and copies.min() == 0
        assert of_windows(stream, epoch) == +Counter(dict(zip(names, copies.tolist(), strict=True)))


def test_batches_of_a_weighted_epoch_are_its_windows(open_stream):
    stream = open_stream(weights=WeightConfig(beta=0.8))
    assert count(epoch_of(stream)) == of_windows(stream, 0)


def test_mean_copies_over_epochs_match_the_weights(open_stream, train_structures):
    stream = open_stream(weights=WeightConfig(beta=0.8), window_blocks=17)
    total = sum((of_windows(stream, epoch) for epoch in range(200)), Counter())
    for s in train_structures:
        starts = np.array([0, len(s)])
        weight = float(stream.weights(s.atomic_numbers, starts, levels_of([s]))[0])
        deviation = np.sqrt((weight % 1) * (1 - weight % 1) / 200)
        assert abs(total[s.structure_id] / 200 - weight) <= 4.5 * deviation + 1e-9


def test_oversized_structures_are_left_out_by_choice_and_named(open_stream, train_structures):
    with pytest.warns(
        UserWarning, match="8 atoms are beyond the budget: left out; raise stream.edge_budget"
    ):
        batches = epoch_of(open_stream(atom_budget=4, edge_budget=10**6, oversized="skip"))
    assert count(batches) == Counter(s.structure_id for s in train_structures if len(s) <= 4)


@pytest.mark.filterwarnings("ignore:.*beyond the budget")
def test_budget_that_nothing_fits_is_an_error(open_stream):
    fault = "no structure is within the budget of 1 edges and 24 atoms: raise"
    with pytest.raises(StreamError, match=fault):
        take(open_stream(edge_budget=1, oversized="skip"), 1)


def test_loss_weights_go_by_element_and_leave_the_sampling_alone(open_stream, train_structures):
    stream = open_stream(weights=WeightConfig(beta=0.8, sampling=False, loss=True))
    batches = epoch_of(stream)
    assert count(batches) == Counter(s.structure_id for s in train_structures)
    level_of = {s.structure_id: s.level_of_theory for s in train_structures}
    for batch in batches:
        for index, name in enumerate(batch.structure_ids):
            own = batch.structure_index == index
            weights = stream.weights.of_level(level_of[name]).per_element()
            expected = torch.tensor(weights, dtype=torch.float32)[batch.atomic_numbers[own]]
            assert torch.equal(batch.atom_weight[own], expected)
    assert len(torch.cat([batch.atom_weight for batch in batches]).unique()) > 2


# --- resume


@settings(max_examples=25)
@given(st.data())
def test_resume_at_equal_world_size_is_identical_batch_by_batch(data_set, data):
    """Over seeds, windows, ranks, budgets, weights and kill points, into the second epoch."""
    world_size = data.draw(st.integers(1, 3))
    config = StreamConfig(
        edge_budget=data.draw(st.sampled_from([120, 300, 2000])),
        atom_budget=64,
        window_blocks=data.draw(st.integers(1, 6)),
        look_ahead=data.draw(st.integers(1, 6)),
        seed=data.draw(st.integers(0, 99)),
        weights=WeightConfig(beta=data.draw(st.sampled_from([0.0, 0.7]))),
    )

    def stream(rank: int) -> Stream:
        source = Source(data_set, config, cutoff=3.2, levels_of_theory=LEVELS)
        return Stream(source, rank=rank, world_size=world_size)

    kill = data.draw(st.integers(0, 20))
    stopped = [stream(rank) for rank in range(world_size)]
    before = [take(s, kill) for s in stopped]
    for rank in range(world_size):
        assert_same(
            before[rank] + take(resumed(stream(rank), *stopped), 12), take(stream(rank), kill + 12)
        )


@settings(max_examples=15)
@given(st.data())
def test_other_world_sizes_see_the_rest_exactly_as_often_as_stated(data_set, data):
    """1 -> 2 -> 3 -> 1 and the like, stopped anywhere: the first epoch is complete."""
    config = StreamConfig(
        edge_budget=400,
        atom_budget=64,
        window_blocks=data.draw(st.integers(1, 4)),
        seed=data.draw(st.integers(0, 99)),
        weights=WeightConfig(beta=data.draw(st.sampled_from([0.0, 0.7]))),
    )

    def stream(rank: int, world_size: int) -> Stream:
        source = Source(data_set, config, cutoff=3.2, levels_of_theory=LEVELS)
        return Stream(source, rank=rank, world_size=world_size)

    seen: Counter = Counter()
    states = [stream(0, 1).state()]
    for world_size in (*data.draw(st.permutations([1, 2, 3])), 1):
        streams = [stream(rank, world_size) for rank in range(world_size)]
        for s in streams:
            s.load_state(json.loads(json.dumps(states)))
            seen.update(in_first_epoch(s, data.draw(st.integers(0, 5))))
        states = [s.state() for s in streams]
    last = stream(0, 1)
    last.load_state(states)
    seen.update(in_first_epoch(last, 10**6))
    whole = stream(0, 1)
    assert seen == Counter(
        (w, s.structure_id) for w in range(whole.windows_per_epoch) for s in whole.window(w)
    )


def in_first_epoch(stream: Stream, most: int) -> list[tuple[int, str]]:
    """(window, structure) of up to `most` batches of the first epoch."""
    taken, source = [], stream.batches()
    for _ in range(most):
        if stream.epoch > 0:
            break
        window = stream._next_window()
        taken += [(window, name) for name in next(source).structure_ids]
    source.close()
    return taken


@given(st.integers(1, 64), st.integers(0, 3000), st.integers(0, 40))
def test_state_of_many_ranks_is_small_and_comes_back_through_json(world_size, common, spread):
    """Each rank has finished `common` windows and up to `spread` more."""
    states = []
    for rank in range(world_size):
        state, done = StreamState(), common + (rank * 7) % (spread + 1)
        for window in range(rank, rank + done * world_size, world_size):
            state.finish(window)
        state.used[rank + done * world_size] = 3
        states.append(json.loads(json.dumps(state.to_dict())))
        assert len(json.dumps(states[-1])) < 200
    merged = StreamState.merge(states)
    again = StreamState.merge([json.loads(json.dumps(merged.to_dict()))])
    assert (again.finished, again.used) == (merged.finished, merged.used)
    for rank in range(world_size):
        done = common + (rank * 7) % (spread + 1)
        windows = range(rank, rank + (done + 3) * world_size, world_size)
        assert [merged.is_finished(w) for w in windows] == [k < done for k in range(done + 3)]
    assert merged.used == {
        rank + (common + (rank * 7) % (spread + 1)) * world_size: 3 for rank in range(world_size)
    }


def test_state_with_weights_is_below_ten_kilobytes(open_stream):
    stream = open_stream(weights=WeightConfig(beta=0.5), edge_budget=120)
    take(stream, 30)
    everything = ElementWeights(
        np.random.default_rng(0).random(119), 0.123456789, 1.3456789, "mean"
    )
    stream.source.shared_weights.fitted = LevelWeights({"EMT": everything})
    assert len(json.dumps(stream.state())) < 10_000
    np.testing.assert_array_equal(
        resumed(open_stream(), stream).weights.of_level("EMT").element_weight[1:],
        everything.element_weight[1:],
    )


def test_weights_of_an_older_checkpoint_hold_for_all_levels(open_stream, train_structures):
    stream = open_stream(weights=WeightConfig(beta=0.5), edge_budget=120)
    take(stream, 3)
    state = stream.state()
    older = ElementWeights(np.random.default_rng(0).random(119), 0.5, 1.5)
    state["weights"] = older.to_dict()
    stream.load_state([state])
    numbers = np.concatenate([s.atomic_numbers for s in train_structures])
    starts = np.cumsum([0, *map(len, train_structures)])
    np.testing.assert_array_equal(
        stream.weights(numbers, starts, levels_of(train_structures)),
        ElementWeights.from_dict(older.to_dict())(numbers, starts),
    )
    assert stream.state()["weights"] == older.to_dict()


def test_state_counts_batches_as_they_are_taken_not_as_they_are_prepared(open_stream):
    stream = open_stream(edge_budget=120)
    source = stream.batches()
    for taken in range(1, 4):
        next(source)
        assert sum(stream.progress.used.values()) + 2 * len(stream.progress.finished) >= taken
        assert sum(stream.progress.used.values()) <= taken
    source.close()


# --- the thread


def test_error_while_preparing_is_raised_where_batches_are_taken(open_stream):
    with pytest.raises(
        EvenfieldError, match="level of theory 'EMT-scaled' has no head; the model has: EMT"
    ):
        take(open_stream(levels=["EMT"]), 20)


def test_batches_before_an_error_are_given_first(open_stream, monkeypatch):
    stream = open_stream(atom_budget=1)  # every structure alone
    graph, made = stream.source.graph, []

    def fail_at_the_tenth(structure):
        made.append(structure)
        if len(made) == 10:
            raise OSError("disk on fire")
        return graph(structure)

    monkeypatch.setattr(stream.source, "graph", fail_at_the_tenth)
    taken = []
    with pytest.raises(OSError, match="disk on fire"):
        for batch in stream.batches():
            taken.append(batch)
    assert taken


def test_leaving_early_ends_the_thread(open_stream):
    before = threading.active_count()
    stream = open_stream(edge_budget=1)
    for _ in stream.batches():
        assert threading.active_count() == before + 1
        break
    epoch = stream.batches()
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_thread_stays_a_few_batches_ahead_only(open_stream, monkeypatch):
    stream = open_stream(edge_budget=1, look_ahead=1, window_blocks=100)
    graph, made = stream.source.graph, []
    monkeypatch.setattr(stream.source, "graph", lambda s: made.append(s) or graph(s))
    epoch = stream.batches()
    next(epoch)
    threading.Event().wait(0.5)
    epoch.close()
    assert len(made) < 12


def test_second_resume_does_not_go_back_to_what_the_other_rank_had_used_at_the_first(open_stream):
    """A rank keeps the other's count of the first checkpoint, until the second has a newer one."""
    whole = [
        ids(take(open_stream(rank=rank, world_size=2, edge_budget=80), 9)) for rank in range(2)
    ]
    stopped, parts = (
        [open_stream(rank=rank, world_size=2, edge_budget=80) for rank in range(2)],
        [[], []],
    )
    for _ in range(3):
        for rank in range(2):
            parts[rank] += ids(take(stopped[rank], 3))
        stopped = [
            resumed(open_stream(rank=rank, world_size=2, edge_budget=80), *stopped)
            for rank in range(2)
        ]
    assert parts == whole
