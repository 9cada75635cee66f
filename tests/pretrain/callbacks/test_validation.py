"""Structures of a validation: spread over data sets and levels of theory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import cycle

import pytest

from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.pretrain.callbacks.validation import equal_shares, spread_structures


@pytest.fixture
def collection(train_structures, tmp_path) -> Collection:
    """Two sets that validate: 300 structures of one level and then 6 of another, and 60 of one."""
    sets = {
        "large": ["EMT"] * 300 + ["rare"] * 6 + ["headless"] * 3,
        "small": ["EMT"] * 60,
    }
    for name, levels in sets.items():
        parts = []
        for number, (level, one) in enumerate(zip(levels, cycle(train_structures))):
            own_name = f"{name}-{level}-{number}"
            part = replace(one, level_of_theory=level, split="valid")
            parts.append(replace(part, structure_id=own_name, group=own_name))
        first = replace(parts[0], split="train", structure_id="first", group="first")
        origin = {"file": name, "sha256": ""}
        write_data_set([first, *parts], tmp_path / name, origin, ConvertConfig())
    return Collection([str(tmp_path / name) for name in sets])


def test_every_set_and_level_has_its_share(collection):
    chosen = spread_structures(collection, "valid", ["EMT", "rare"], 26)
    kinds = Counter(one.structure_id.rpartition("-")[0] for one in chosen)
    assert kinds == {"large-EMT": 10, "large-rare": 6, "small-EMT": 10}

    # over the whole length of a set, which is longer than a block
    places = [int(one.structure_id.rpartition("-")[2]) for one in chosen[:10]]
    assert places == [30 * k for k in range(10)]


def test_all_of_a_small_split_in_the_order_of_the_files(collection):
    chosen = spread_structures(collection, "valid", ["EMT", "rare"], 1000)
    everything = [
        one for one in collection.structures("valid") if one.level_of_theory != "headless"
    ]
    assert [one.structure_id for one in chosen] == [one.structure_id for one in everything]
    for one, other in zip(chosen, everything, strict=True):
        assert one.energy == other.energy
        assert (one.positions == other.positions).all()
        # no view that would keep a whole block
        assert one.positions.base is None and one.forces.base is None


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([5, 5], 4, [2, 2]),
        ([1, 9], 6, [1, 5]),
        ([9, 1, 9], 7, [3, 1, 3]),
        ([2, 2], 9, [2, 2]),
        ([], 3, []),
        ([4, 4, 4], 2, [0, 1, 1]),
    ],
)
def test_shares_are_equal_where_the_stocks_last(sizes, total, expected):
    shares = equal_shares(sizes, total)
    assert shares == expected
    assert sum(shares) == min(total, sum(sizes))
