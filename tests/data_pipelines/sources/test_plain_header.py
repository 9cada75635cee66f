"""Comment lines of extended xyz: the short way reads what ASE reads, or leaves the line to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.io.extxyz import key_val_str_to_dict
from hypothesis import example, given
from hypothesis import strategies as st

from evenfield.data_pipelines.sources.xyz_frames import doubled_keys, frames_of_text, plain_header
from evenfield.data_pipelines.structure import BadRecordError


NINE = "1 2 3 4 5 6 7 8.5 -9e-3"
WORDS = st.text(alphabet="aTFnNiIf01 9.-+eE,_:/()\t'{=\"\\[]é", max_size=8)
VALUES = st.one_of(
    WORDS,
    st.sampled_from([NINE, "nan", "inf -inf", "T F T", "true", "1_0", "_JSON [1, 2]", "12 x"]),
)
PAIRS = st.builds(
    lambda key, value, form: form.format(key, value),
    st.sampled_from(["energy", "Lattice", "stress", "virial", "uid", "a-b", "1", "pbc", "", "é"]),
    VALUES,
    st.sampled_from(['{}="{}"', "{}={}", "{} = {}", "{}='{}'", "{}", '{}="{}"x', "{}={{{}}}"]),
)


def ase_reads(line: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = key_val_str_to_dict(line)
    except Exception:
        # ASE's reader raises all kinds of errors
        return None
    return found


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        # nan is not equal to itself
        assert repr(one) == repr(other)


@given(st.lists(PAIRS, max_size=4).map(" ".join))
@example(f'Lattice="{NINE}" Properties=species:S:1:pos:R:3 energy=-1.5 pbc="T T F" name="a b"')
@example('a="x b=\\"1 2\\" y" c=3')
def test_the_short_way_reads_what_ase_reads(line: str) -> None:
    try:
        found = plain_header(line.strip())
    except BadRecordError:
        # of a doubled key ASE keeps the last
        return
    if found is None:
        return
    expected = ase_reads(line.strip())
    assert expected is not None
    assert list(found) == list(expected)
    for key, value in found.items():
        assert_same(value, expected[key])


@pytest.mark.parametrize(
    "line",
    [
        f'Lattice="{NINE}" Properties=species:S:1:pos:R:3:forces:R:3 energy=-28.7 pbc="T T T"',
        'level="PBE(+U) VASP MP" source_id=mp-1080834-0-1 group=formula/As4Na5 stress_suspect=T',
    ],
)
def test_usual_lines_go_the_short_way(line: str) -> None:
    assert plain_header(line) is not None


@pytest.mark.parametrize(
    "comment",
    [
        "energy=1 energy=2",
        'energy=1 config_type="energy=3" energy=2',
        # not plain: ASE reads them
        "energy=1 name='a b' energy = 2",
        'energy=1 name="a \\" energy=2" x={1 2} energy=3',
        "energy=1 energy='2",
    ],
)
def test_a_key_that_is_there_twice_is_refused(comment: str) -> None:
    """ASE keeps the last one, and nothing says which of them is right."""
    text = f"1\nProperties=species:S:1:pos:R:3 {comment}\nH 0 0 0\n"
    with pytest.raises(BadRecordError, match="'energy' twice"):
        list(frames_of_text(text.encode()))


@pytest.mark.parametrize(
    "comment",
    ['energy=1 name="energy=2"', "energy=1 name='energy=2 energy=3'", "energy=1 x={energy=2 3}"],
)
def test_what_is_quoted_is_no_key(comment: str) -> None:
    text = f"1\nProperties=species:S:1:pos:R:3 {comment}\nH 0 0 0\n"
    (atoms,) = frames_of_text(text.encode())
    assert atoms.get_potential_energy() == 1


@pytest.mark.parametrize("filler", ["x", "'", '\\"', "{", "[", " ", "x ", "= ", '" '])
def test_the_search_for_doubled_keys_takes_no_time(filler: str) -> None:
    """Half a million letters took minutes with a search that starts at each of them."""
    line = "é " + filler * (400_000 // len(filler))
    assert doubled_keys(line) == []
