"""Mixing within a batch: shares at every prefix, each source's own epochs, exact under resume."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evenfield.data_pipelines.census.weights import LevelWeights, WeightConfig
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.mixture import (
    MixingConfig,
    Mixture,
    shares_of,
    shares_of_levels,
)
from evenfield.data_pipelines.stream.source import SharedWeights, Source
from evenfield.data_pipelines.stream.training_stream import StreamError
from evenfield.data_pipelines.structure import Structure


LEVELS = ["EMT", "EMT-scaled"]
SMALL = {"edge_budget": 300, "atom_budget": 64, "window_blocks": 2}
shares_of_sources = st.lists(st.floats(0.02, 1), min_size=2, max_size=5)


@pytest.fixture(scope="module")
def folders(data_set, train_structures, tmp_path_factory) -> list[Path]:
    """The small data set, crystals in cells three times as large, and six structures."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(data_set, folder / "one")
    crystals = [one for one in train_structures if one.pbc.all()]
    tripled = [
        Structure.from_atoms(
            one.to_atoms().repeat((3, 1, 1)),
            level_of_theory=one.level_of_theory,
            structure_id=f"large-{k}",
            group=f"large-{k}",
            split="train",
            energy=3 * one.energy,
        )
        for k, one in enumerate(crystals[::3])
    ]
    few = [replace(one, split="train") for one in train_structures[:6]]
    for name, structures in {"large": tripled, "few": few}.items():
        write_data_set(structures, folder / name, {"file": name, "sha256": ""}, ConvertConfig())
    return [folder / name for name in ("one", "large", "few")]


def source_of(folder: Path, **config) -> Source:
    return Source(folder, StreamConfig(**SMALL | config), cutoff=3.2, levels_of_theory=LEVELS)


def mixture(
    folders: list[Path], shares: list[float], rank: int = 0, world_size: int = 1, **config
) -> Mixture:
    sources = [source_of(folder, **config) for folder in folders]
    settings = StreamConfig(**SMALL | config)
    return Mixture(sources, np.array(shares), settings, rank=rank, world_size=world_size)


class Numbers:
    """A data set whose structures are the numbers of their positions."""

    def __init__(self, name: str, size: int = 700, block: int = 100, edges: int = 1) -> None:
        self.folder = Path(name)
        self.name = name
        self.num_structures = size
        self.blocks = SimpleNamespace(sizes=[block] * (size // block))
        self.most_edges = edges
        self.weights = LevelWeights({})
        self.shared_weights = SharedWeights()

    def between(self, first: int, last: int):
        for position in range(first, last):
            yield float(position), position

    def graph(self, position: int):
        edges = 40 * int(np.random.default_rng(position).integers(1, self.most_edges))
        return SimpleNamespace(num_edges=edges, num_atoms=1, name=(self.folder.name, position))


def numbers(shares: list[float], rank: int = 0, world_size: int = 1, **config) -> Mixture:
    sources = [Numbers(f"s{k}") for k in range(len(shares))]
    settings = StreamConfig(window_blocks=1, **config)
    return Mixture(sources, np.array(shares), settings, rank=rank, world_size=world_size)


def take(mixed: Mixture, number: int) -> list[list[str]]:
    source = mixed.batches()
    taken = [batch.structure_ids for batch in itertools.islice(source, number)]
    source.close()
    return taken


def resumed(mixed: Mixture, *stopped: Mixture) -> Mixture:
    mixed.load_state([json.loads(json.dumps(other.state())) for other in stopped])
    return mixed


# --- shares


@settings(max_examples=60)
@given(shares_of_sources, st.integers(0, 10**7))
def test_shares_hold_at_every_prefix_and_every_position_comes_once(shares, first):
    """From the beginning of any window on: the bound does not grow with the run."""
    mixed = numbers(shares)
    bound = (1 + len(shares)) / 2
    begin = {name: mixed.schedule.position(name, first) for name in mixed.sources}
    total = sum(begin.values())
    counts = Counter(begin)
    for window in range(first, first + 3):
        for source, position in mixed.structures(window):
            name = source.folder.name
            assert position == counts[name]
            counts[name] += 1
            total += 1
            for other, share in mixed.schedule.shares.items():
                assert abs(counts[other] - share * total) <= bound + 1e-6


def test_random_draws_would_not_hold_the_shares():
    """The bound above excludes them."""
    drawn = np.random.default_rng(0).random(2000) < 0.3
    off = np.abs(np.cumsum(drawn) - 0.3 * np.arange(1, 2001))
    assert off.max() > 10 > (1 + 2) / 2


@given(shares_of_sources, st.integers(2, 9))
def test_every_rank_gets_the_shares_of_its_windows(shares, world_size):
    mixed = numbers(shares)
    for rank in range(world_size):
        for window in range(rank, 5 * world_size, world_size):
            counts = Counter(source.folder.name for source, _ in mixed.structures(window))
            for name, share in mixed.schedule.shares.items():
                assert abs(counts[name] - share * mixed.schedule.length) <= 1


def test_one_batch_holds_structures_of_all_sources_by_share(folders):
    mixed = mixture(folders, [0.5, 0.2, 0.3], edge_budget=10**6, atom_budget=10**6)
    (batch,) = itertools.islice(mixed.batches(), 1)
    names = Counter(
        "large" if name.startswith("large") else "other" for name in batch.structure_ids
    )
    assert names["large"] == pytest.approx(0.2 * batch.num_structures, abs=2)

    narrow = take(mixture(folders[:2], [0.5, 0.5], edge_budget=2000, atom_budget=10**6), 30)
    mixed_batches = [len({name.startswith("large") for name in batch}) == 2 for batch in narrow]
    assert np.mean(mixed_batches) > 0.7


@pytest.mark.parametrize("count", ["structures", "atoms", "edges"])
def test_shares_count_what_is_stated(folders, count):
    stated = {"one": 0.4, "large": 0.6}
    sources = [source_of(folder) for folder in folders[:2]]
    shares = shares_of(sources, MixingConfig(shares=stated, count=count))
    mixed = mixture(folders[:2], shares)
    epoch = 4 * mixed.windows_per_epoch
    sums = Counter()
    for window in range(epoch):
        for source, structure in mixed.structures(window):
            graph = source.graph(structure)
            sizes = {"structures": 1, "atoms": graph.num_atoms, "edges": graph.num_edges}
            sums[source.folder.name] += sizes[count]
    assert sums["large"] / sums.total() == pytest.approx(0.6, abs=0.01)


def test_shares_go_by_size_temperature_or_statement(folders):
    sources = [source_of(folder) for folder in folders]
    sizes = np.array([source.num_structures for source in sources])
    assert shares_of(sources, MixingConfig()).tolist() == sizes.tolist()
    np.testing.assert_allclose(shares_of(sources, MixingConfig(temperature=2)), sizes**0.5)
    # by size, every structure of all data sets comes equally often, whatever sizes count
    np.testing.assert_allclose(shares_of(sources, MixingConfig(count="edges")), sizes)
    stated = MixingConfig(shares={"few": 0.7, "large": 0.1, "one": 0.2})
    assert shares_of(sources, stated).tolist() == [0.2, 0.1, 0.7]
    fault = r"mixing\.shares must give each of one, large, few a share above 0"
    with pytest.raises(StreamError, match=fault):
        shares_of(sources, MixingConfig(shares={"one": 1.0}))
    with pytest.raises(StreamError, match="must have different folder names"):
        shares_of([sources[0], sources[0]], MixingConfig())


def test_set_without_edges_cannot_have_a_share_of_them(folders):
    apart = [Source(f, StreamConfig(), cutoff=0.1, levels_of_theory=LEVELS) for f in folders]
    with pytest.raises(StreamError, match="one: has no edges") as told:
        shares_of(apart, MixingConfig(count="edges"))
    assert "mixing.count=atoms" in told.value.remedy


# --- epochs


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_every_source_keeps_the_order_and_the_copies_that_it_has_alone(folders, beta):
    config = {"weights": WeightConfig(beta=beta)}
    mixed = mixture(folders, [0.5, 0.2, 0.3], **config)
    drawn: dict[str, list[str]] = {name: [] for name in mixed.sources}
    for window in range(12):
        for source, structure in mixed.structures(window):
            drawn[source.folder.name].append(structure.structure_id)
    for folder in folders:
        alone = source_of(folder, **config)
        order = itertools.chain.from_iterable(map(alone.window, itertools.count()))
        own = drawn[folder.name]
        assert own == [next(order).structure_id for _ in own]
        # several epochs of the smallest, and more than half of one of the largest
        assert len(own) > (0.5 if folder.name == "one" else 1.0) * alone.num_structures


def test_epoch_is_that_of_the_first_source(folders):
    mixed = mixture(folders, [0.5, 0.2, 0.3])
    size = mixed.sources["one"].num_structures
    for window in range(40):
        assert mixed.epoch_of(window) == mixed.schedule.position("one", window) // size
    assert mixed.epoch_of(0) == 0 < mixed.epoch_of(40)


# --- resume


@settings(max_examples=15)
@given(st.data())
def test_resume_at_equal_world_size_is_identical(folders, data):
    world_size = data.draw(st.integers(1, 3))
    shares = data.draw(st.lists(st.floats(0.1, 1), min_size=3, max_size=3))
    beta = data.draw(st.sampled_from([0.0, 0.7]))
    kill = data.draw(st.integers(0, 25))

    def stream(rank: int) -> Mixture:
        return mixture(folders, shares, rank, world_size, weights=WeightConfig(beta=beta))

    stopped = [stream(rank) for rank in range(world_size)]
    before = [take(one, kill) for one in stopped]
    for rank in range(world_size):
        rest = take(resumed(stream(rank), *stopped), 8)
        assert before[rank] + rest == take(stream(rank), kill + 8)


@settings(max_examples=15)
@given(st.data())
def test_other_world_sizes_and_shares_leave_every_structure_once_in_its_epoch(folders, data):
    """1, 2 and 3 ranks in any order, stopped anywhere; new shares with some of them."""
    beta = data.draw(st.sampled_from([0.0, 0.7]))
    shares = [0.5, 0.2, 0.3]
    seen: dict[str, Counter] = {folder.name: Counter() for folder in folders}
    states: list = []
    for world_size in (*data.draw(st.permutations([1, 2, 3])), 1):
        if data.draw(st.booleans()):
            shares = data.draw(st.lists(st.floats(0.1, 1), min_size=3, max_size=3))
        ranks = [
            mixture(folders, shares, rank, world_size, weights=WeightConfig(beta=beta))
            for rank in range(world_size)
        ]
        for mixed in ranks:
            if states:
                mixed.load_state(json.loads(json.dumps(states)))
            note_sources(mixed)
            for batch in take(mixed, data.draw(st.integers(0, 6))):
                count_sources(batch, seen)
        states = [mixed.state() for mixed in ranks]

    # the one rank of the end goes on until no window is left open
    (last,) = ranks
    end = last.progress.first_untouched()
    batches = last.batches()
    while last.progress.first_unfinished() < end:
        count_sources(next(batches).structure_ids, seen)
    batches.close()

    end = last.progress.first_unfinished()
    for name, source in last.sources.items():
        number = last.schedule.position(name, end)
        if end > last.schedule.first_window:
            expected = (one.structure_id for _, one in source.between(0, number))
            assert seen[name] == Counter(f"{name}/{identity}" for identity in expected)


def note_sources(mixed: Mixture) -> None:
    """Structures get the names of their data sets."""
    for name, source in mixed.sources.items():

        def graph(structure, name=name, graph=source.graph):
            own = graph(structure)
            own.structure_ids = [f"{name}/{identity}" for identity in own.structure_ids]
            return own

        source.graph = graph


def count_sources(batch: list[str], seen: dict[str, Counter]) -> None:
    for name in batch:
        seen[name.split("/")[0]][name] += 1


def test_new_shares_hold_from_the_first_window_that_no_rank_has_begun():
    before = [numbers([0.5, 0.5], rank, 2) for rank in range(2)]
    for rank, window in ((0, 0), (0, 2), (1, 1)):
        before[rank].progress.finish(window)
    before[1].progress.used[3] = 2
    after = resumed(numbers([0.9, 0.1]), *before)

    def counts(window: int) -> Counter:
        return Counter(source.folder.name for source, _ in after.structures(window))

    assert counts(3) == {"s0": 100, "s1": 100} and counts(4) == {"s0": 180, "s1": 20}
    positions = [position for window in (3, 4) for _, position in after.structures(window)]
    assert sorted(positions) == sorted([*range(300, 580), *range(300, 420)])
    # once window 3 is finished, the old schedule is no longer kept
    after.progress.finish(3)
    after = resumed(numbers([0.9, 0.1]), after)
    assert [schedule.first_window for schedule in after._schedules] == [4]


def test_state_is_small(folders):
    mixed = mixture(folders, [0.5, 0.2, 0.3])
    take(mixed, 30)
    state = mixed.state()
    del state["weights"]
    assert len(json.dumps(state)) < 400


def test_other_data_sets_than_those_of_the_run_are_refused_by_name(folders):
    two = mixture(folders[:2], [0.5, 0.5])
    three = mixture(folders, [0.5, 0.2, 0.3])
    with pytest.raises(StreamError, match="few: was not part of the run that is resumed"):
        mixture(folders, [0.5, 0.2, 0.3]).load_state([two.state()])
    with pytest.raises(StreamError, match="the run that is resumed also had few"):
        mixture(folders[:2], [0.5, 0.5]).load_state([three.state()])


def test_position_of_a_run_whose_batches_came_from_one_set_each_is_refused(folders):
    old = {"drawn": 5, "sources": {"one": {}, "large": {}}}
    with pytest.raises(StreamError, match="no position in a mixture of structures"):
        mixture(folders[:2], [0.5, 0.5]).load_state([old])


# --- batches


@pytest.mark.parametrize("world_size", [2, 3])
def test_batches_do_not_depend_on_the_number_of_ranks(folders, world_size):
    windows = 2 * world_size
    alone = mixture(folders, [0.5, 0.2, 0.3])
    expected = [batch for window in range(windows) for batch in names(alone, window)]
    ranks = [mixture(folders, [0.5, 0.2, 0.3], r, world_size) for r in range(world_size)]
    found = []
    for rank, mixed in enumerate(ranks):
        own = [
            batch for window in range(rank, windows, world_size) for batch in names(mixed, window)
        ]
        assert take(mixed, len(own)) == own
        found += own
    assert sorted(found) == sorted(expected)


def names(mixed: Mixture, window: int) -> list[list[str]]:
    return [
        [name for graph in packed for name in graph.structure_ids]
        for packed in mixed._packed(window)
    ]


def test_batches_of_very_different_sources_are_full_on_all_ranks():
    """Structures of up to 40 and of up to 200 times 40 edges: the budget and its bound of today."""
    budget, ranks = 20_000, 4
    config = StreamConfig(edge_budget=budget, atom_budget=10_000, window_blocks=1)
    sources = [
        Numbers("molecules", 20_000, 1000, edges=41),
        Numbers("crystals", 20_000, 1000, edges=201),
    ]
    table = []
    for rank in range(ranks):
        mixed = Mixture(sources, np.array([0.6, 0.4]), config, rank=rank, world_size=ranks)
        batches = [sum(g.num_edges for g in packed) for packed in mixed._packed(rank)]
        assert max(batches) <= budget
        table.append(batches[:-1])  # the last batch of a window is what was left
    steps = min(map(len, table))
    edges = np.array([own[:steps] for own in table])
    assert edges.mean() / budget > 0.98
    assert ((edges.max(0) - edges.min(0)) / edges.mean(0)).mean() < 0.02


# --- shares of levels of theory


def level_mixture(folders: list[Path], **shares: float) -> Mixture:
    collection = Collection([str(folder) for folder in folders])
    mixing = MixingConfig(level_shares=shares)
    config = StreamConfig(**SMALL)
    return collection.stream(
        config, mixing, cutoff=3.2, levels_of_theory=LEVELS, rank=0, world_size=1
    )


def test_shares_of_levels_make_up_for_empty_positions(folders):
    """Whatever a folder holds of a level: the share is that of its structures."""
    sources = [SimpleNamespace(folder=folders[0], only_level="PBE", num_structures=100)]
    sources += [SimpleNamespace(folder=folders[0], only_level="xTB", num_structures=100)]
    sources += [SimpleNamespace(folder=folders[1], only_level="PBE", num_structures=40)]
    config = MixingConfig(level_shares={"PBE": 0.8, "xTB": 0.2})
    shares = shares_of_levels(sources, [10, 90, 30], config)
    filled = np.array([0.1, 0.9, 0.75])
    np.testing.assert_allclose(shares * filled, [0.2, 0.2, 0.6])
    with pytest.raises(StreamError, match="must give each of PBE, xTB a share above 0"):
        shares_of_levels(sources, [10, 90, 30], MixingConfig(level_shares={"PBE": 1.0}))


@pytest.mark.parametrize("wrong", [{"shares": {"one": 1.0}}, {"count": "atoms"}])
def test_shares_of_levels_exclude_other_statements(wrong):
    with pytest.raises(ValidationError, match="level_shares"):
        MixingConfig(level_shares={"EMT": 1.0}, **wrong)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_has_the_shares_of_its_levels_and_resumes_in_place(folders, number):
    shares = {"EMT": 0.25, "EMT-scaled": 0.75}
    level_of = {
        structure.structure_id: structure.level_of_theory
        for folder in folders[:number]
        for structure in iter_structures(folder, "train")
    }
    whole = take(level_mixture(folders[:number], **shares), 120)
    names = [name for batch in whole for name in batch]
    of_emt = sum(level_of[name] == "EMT" for name in names) / len(names)
    assert of_emt == pytest.approx(0.25, abs=0.03)
    # every structure comes
    assert set(names) == set(level_of)

    stopped = level_mixture(folders[:number], **shares)
    first = take(stopped, 13)
    again = resumed(level_mixture(folders[:number], **shares), stopped)
    assert first + take(again, 20) == whole[:33]
