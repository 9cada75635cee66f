"""The stream: complete, deterministic, within budget, exact under resume on any number of ranks."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data_pipelines.schema import Structure
from evenfield.data_pipelines.stream import Stream, StreamConfig, StreamState, pack
from evenfield.data_pipelines.weights import WeightConfig, num_copies


LEVELS = ["EMT", "EMT-scaled"]


@pytest.fixture
def open_stream(data_set):
    """Streams over the small data set: 17 blocks of 4 structures in 9 windows."""

    def build(*, rank: int = 0, world_size: int = 1, levels: list[str] = LEVELS, **config) -> Stream:
        config = {"edge_budget": 300, "atom_budget": 24, "window_blocks": 2, "look_ahead": 4} | config
        return Stream(
            data_set,
            StreamConfig(**config),
            cutoff=3.2,
            levels_of_theory=levels,
            rank=rank,
            world_size=world_size,
        )

    return build


def ids(batches) -> list[list[str]]:
    return [batch.structure_id for batch in batches]


def count(batches) -> Counter:
    return Counter(name for batch in batches for name in batch.structure_id)


def at_epoch(stream: Stream, epoch: int) -> Stream:
    stream.state = StreamState(epoch=epoch)
    return stream


def through_json(*streams: Stream) -> StreamState:
    return StreamState.merge([json.loads(json.dumps(stream.state.to_dict())) for stream in streams])


def assert_same(one, other) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.structure_id == b.structure_id
        for name in ("positions", "edge_index", "cell_shifts", "energy", "head", "force_weight"):
            assert torch.equal(a[name], b[name])
        assert torch.equal(a.forces, b.forces) and a.ptr.tolist() == b.ptr.tolist()


# --- an epoch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_epoch_holds_every_structure_exactly_once(open_stream, train_structures, world_size):
    streams = [open_stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(stream.epoch()) for stream in streams]
    assert count(itertools.chain(*batches)) == Counter(s.structure_id for s in train_structures)
    assert all(batches)  # every rank has work


def test_batches_do_not_depend_on_the_number_of_ranks(open_stream):
    alone = {tuple(names) for names in ids(open_stream().epoch())}
    streams = [open_stream(rank=rank, world_size=3) for rank in range(3)]
    assert {tuple(names) for s in streams for names in ids(s.epoch())} == alone


def test_structures_arrive_unchanged(open_stream, train_structures):
    originals: dict[str, Structure] = {s.structure_id: s for s in train_structures}
    for batch in open_stream().epoch():
        for k, graph in enumerate(batch.to_data_list()):
            s = originals[batch.structure_id[k]]
            assert graph.energy.item() == s.energy
            assert torch.equal(graph.positions, torch.tensor(s.positions))
            assert torch.equal(graph.forces, torch.tensor(s.forces, dtype=torch.float32))
            assert LEVELS[graph.head] == s.level_of_theory
            assert graph.stress.isnan().all() == (s.stress is None)


def test_order_is_fixed_by_seed_and_epoch(open_stream):
    first = ids(open_stream().epoch())
    assert ids(open_stream().epoch()) == first
    assert ids(at_epoch(open_stream(), 1).epoch()) != first
    assert ids(open_stream(seed=1).epoch()) != first


def test_every_epoch_shuffles_both_blocks_and_structures(open_stream):
    config = {"window_blocks": 1, "look_ahead": 1, "edge_budget": 10**6, "atom_budget": 10**6}  # a batch a block
    epochs = [ids(at_epoch(open_stream(**config), epoch).epoch()) for epoch in (0, 1)]
    blocks = [[set(batch) for batch in epoch] for epoch in epochs]
    assert blocks[0] != blocks[1]
    assert {*map(frozenset, blocks[0])} == {*map(frozenset, blocks[1])}
    places = [[[int(name.split("-")[1]) for name in batch] for batch in epoch] for epoch in epochs]
    shuffles = [[[sorted(batch).index(place) for place in batch] for batch in epoch] for epoch in places]
    assert sum(a != b for a, b in zip(*shuffles, strict=True)) > len(shuffles[0]) / 2


def test_next_epoch_starts_over_in_another_order(open_stream):
    stream = open_stream()
    first = ids(stream.epoch())
    assert not list(stream.epoch())  # it is used up
    stream.next_epoch()
    assert ids(stream.epoch()) == ids(at_epoch(open_stream(), 1).epoch()) != first


def test_shuffle_mixes_blocks(open_stream):
    windows = [name for batch in ids(open_stream(window_blocks=100).epoch()) for name in batch]
    places = [int(name.split("-")[1]) for name in windows]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(places))
    assert neighbours < len(places) / 4  # file order would make nearly all of them neighbours


def test_batches_respect_both_budgets_and_fill_them(open_stream):
    batches = list(open_stream().epoch())
    for batch in batches:
        assert batch.num_graphs == 1 or (batch.num_edges <= 300 and batch.num_nodes <= 24)
    assert max(batch.num_graphs for batch in batches) >= 4
    many = len(list(open_stream(edge_budget=100).epoch()))
    assert len(batches) < many < len(list(open_stream(edge_budget=1).epoch()))


def test_structure_larger_than_the_budget_comes_alone(open_stream, train_structures):
    batches = list(open_stream(atom_budget=4, edge_budget=10**6).epoch())
    assert all(batch.num_graphs == 1 for batch in batches)
    assert max(batch.num_nodes for batch in batches) == 8
    assert count(batches) == Counter(s.structure_id for s in train_structures)


# --- weights


def test_copies_of_an_epoch_are_those_of_num_copies(open_stream, train_structures):
    weights = WeightConfig(beta=0.8)
    for epoch in (0, 1):
        stream = at_epoch(open_stream(weights=weights, seed=3), epoch)
        expected = Counter()
        for s in train_structures:
            expected[s.structure_id] = num_copies(stream.weights(s), s.structure_id, 3, epoch)
        assert max(expected.values()) > 1 and min(expected.values()) == 0
        assert count(stream.epoch()) == +expected


def test_weighted_epochs_do_not_depend_on_the_number_of_ranks(open_stream):
    weights = WeightConfig(beta=0.8)
    streams = [open_stream(weights=weights, rank=rank, world_size=2) for rank in range(2)]
    assert count(b for s in streams for b in s.epoch()) == count(open_stream(weights=weights).epoch())


def test_loss_weights_go_by_element_and_leave_the_sampling_alone(open_stream, train_structures):
    stream = open_stream(weights=WeightConfig(beta=0.8, sampling=False, loss=True))
    batches = list(stream.epoch())
    assert count(batches) == Counter(s.structure_id for s in train_structures)
    per_element = torch.tensor(stream.weights.per_element(), dtype=torch.float32)
    for batch in batches:
        assert torch.equal(batch.force_weight, per_element[batch.atomic_numbers])
    assert len(torch.cat([batch.force_weight for batch in batches]).unique()) > 2


# --- resume


@pytest.mark.parametrize("taken", [0, 1, 5, 9])
def test_resume_is_identical_batch_by_batch(open_stream, taken):
    config = {"weights": WeightConfig(beta=0.5), "edge_budget": 120}
    whole = list(open_stream(**config).epoch())
    stopped = open_stream(**config)
    first = list(itertools.islice(stopped.epoch(), taken))
    resumed = open_stream(**config)
    resumed.state = through_json(stopped)
    assert_same(first + list(resumed.epoch()), whole)
    resumed.next_epoch()
    assert ids(resumed.epoch()) == ids(at_epoch(open_stream(**config), 1).epoch())


def test_resume_on_two_ranks_is_identical_on_each(open_stream):
    whole = [list(open_stream(rank=rank, world_size=2).epoch()) for rank in range(2)]
    stopped = [open_stream(rank=rank, world_size=2) for rank in range(2)]
    first = [list(itertools.islice(stopped[0].epoch(), 3)), list(itertools.islice(stopped[1].epoch(), 5))]
    for rank in range(2):
        resumed = open_stream(rank=rank, world_size=2)
        resumed.state = through_json(*stopped)
        assert_same(first[rank] + list(resumed.epoch()), whole[rank])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_resume_on_other_ranks_sees_the_rest_exactly_once(open_stream, train_structures, before, after):
    stopped = [open_stream(rank=rank, world_size=before, edge_budget=120) for rank in range(before)]
    seen = Counter()
    for rank, stream in enumerate(stopped):
        seen += count(itertools.islice(stream.epoch(), 3 + 2 * rank))
    again = []
    for rank in range(after):
        resumed = open_stream(rank=rank, world_size=after, edge_budget=120)
        resumed.state = through_json(*stopped)
        seen += count(itertools.islice(resumed.epoch(), 2))  # and is stopped once more
        again.append(resumed)
    last = open_stream(edge_budget=120)
    last.state = through_json(*again)
    assert seen + count(last.epoch()) == Counter(s.structure_id for s in train_structures)


def test_state_counts_batches_as_they_are_taken_not_as_they_are_prepared(open_stream):
    stream = open_stream(edge_budget=120)
    epoch = stream.epoch()
    for taken in range(1, 4):
        next(epoch)
        assert sum(stream.state.used.values()) + 2 * len(stream.state.finished) >= taken
        assert sum(stream.state.used.values()) <= taken
    epoch.close()


@given(st.integers(0, 9), st.sets(st.integers(0, 60)), st.dictionaries(st.integers(61, 70), st.integers(1, 9)))
def test_state_comes_back_through_json(epoch, finished, used):
    state = StreamState(epoch, finished, used)
    assert StreamState.merge([json.loads(json.dumps(state.to_dict()))]) == state


@settings(max_examples=20)
@given(st.integers(1, 64), st.integers(0, 20_000))
def test_state_of_a_long_epoch_on_many_ranks_is_small(world_size, common):
    finished = set(range(common)) | set(range(common, 100_000, world_size))
    state = StreamState(3, finished, {7: 12})
    text = json.dumps(state.to_dict())
    assert len(text) < 200
    assert StreamState.merge([json.loads(text)]) == state


# --- the thread


def test_error_while_preparing_is_raised_where_batches_are_taken(open_stream):
    with pytest.raises(ValueError, match="level of theory 'EMT-scaled' has no head; the model has: EMT"):
        list(open_stream(levels=["EMT"]).epoch())


def test_batches_before_an_error_are_given_first(open_stream, monkeypatch):
    stream = open_stream(atom_budget=1)  # every structure alone
    graph, made = stream._graph, []

    def fail_at_the_tenth(structure):
        made.append(structure)
        if len(made) == 10:
            raise OSError("disk on fire")
        return graph(structure)

    monkeypatch.setattr(stream, "_graph", fail_at_the_tenth)
    taken = []
    with pytest.raises(OSError, match="disk on fire"):
        for batch in stream.epoch():
            taken.append(batch)
    assert taken


def test_leaving_early_ends_the_thread(open_stream):
    before = threading.active_count()
    stream = open_stream(edge_budget=1)
    for _ in stream.epoch():
        assert threading.active_count() == before + 1
        break
    epoch = stream.epoch()
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_thread_stays_a_few_batches_ahead_only(open_stream, monkeypatch):
    stream = open_stream(edge_budget=1, look_ahead=1, window_blocks=100)
    graph, made = stream._graph, []
    monkeypatch.setattr(stream, "_graph", lambda s: made.append(s) or graph(s))
    epoch = stream.epoch()
    next(epoch)
    threading.Event().wait(0.5)
    epoch.close()
    assert len(made) < 12


# --- packing

sizes = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=60)


@settings(max_examples=200)
@given(sizes, st.integers(1, 100), st.integers(1, 40), st.integers(1, 8))
def test_pack_keeps_every_graph_and_both_budgets(pairs, edge_budget, atom_budget, look_ahead):
    taken = []

    def graphs():
        for name, (edges, atoms) in enumerate(pairs):
            taken.append(name)
            yield SimpleNamespace(num_edges=edges, num_nodes=atoms, name=name)

    packed: list[int] = []
    for batch in pack(graphs(), edge_budget, atom_budget, look_ahead):
        names = [graph.name for graph in batch]
        edges, atoms = sum(g.num_edges for g in batch), sum(g.num_nodes for g in batch)
        assert len(batch) == 1 or (edges <= edge_budget and atoms <= atom_budget)
        waiting = sorted(set(taken) - set(packed))
        assert names[0] == waiting[0]  # the oldest always goes: nothing starves
        packed += names
        left = [pairs[name] for name in set(taken) - set(packed)]
        assert len(left) <= look_ahead
        assert all(edges + e > edge_budget or atoms + a > atom_budget for e, a in left)  # and nothing else fits
    assert sorted(packed) == list(range(len(pairs)))
    if look_ahead == 1:
        assert packed == sorted(packed)
