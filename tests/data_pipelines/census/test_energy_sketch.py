"""The sketch of a level's energies: its parts add up, and it tells which data share structures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfield.data_pipelines.census.energy_sketch import SIZE, EnergySketch, common, hashes_of


def sketch_of(energies: np.ndarray) -> EnergySketch:
    sketch = EnergySketch()
    sketch.add(energies)
    return sketch


@given(st.lists(st.floats(-1e4, 1e4), max_size=300), st.integers(0, 300))
def test_parts_add_up_in_any_order(energies, cut):
    values = np.array(energies, np.float64)
    whole = sketch_of(values)
    first = sketch_of(values[cut:])
    first += sketch_of(values[:cut])
    assert first.to_list() == whole.to_list()
    assert len(whole.to_list()) == min(SIZE, len(np.unique(values.view(np.uint64))))


def test_different_energies_have_different_hashes_that_fill_the_range():
    hashes = hashes_of(np.linspace(-3.0, 3.0, 100_001))
    assert len(np.unique(hashes)) == 100_001
    # uniform hashes: the mean is the middle, within three standard errors of 0.29 / sqrt(100,001)
    assert (hashes / 2**64).mean() == pytest.approx(0.5, abs=3e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_common_energies_is_found_among_ten_times_as_many(share):
    rng = np.random.default_rng(1)
    part = rng.normal(size=1000)
    kept = part[: int(share * len(part))]
    whole = np.concatenate([kept, rng.normal(size=9000)])
    number, judged = common(sketch_of(part).to_list(), sketch_of(whole).to_list())
    assert 3 <= judged < SIZE
    # a binomial distribution
    assert number / judged == pytest.approx(share, abs=3 * (share * (1 - share) / judged) ** 0.5)
