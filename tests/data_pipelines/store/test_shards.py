"""Shards: what goes in comes out, files are whole or absent, and broken data sets are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.core.labels import present
from evenfield.data_pipelines.store import shards
from evenfield.data_pipelines.store.blocks import Block, BlockReader
from evenfield.data_pipelines.store.shards import (
    BrokenDataSetError,
    read_info,
    shard_paths,
    to_table,
    write_atomically,
    write_shard,
)
from evenfield.data_pipelines.structure import Structure


@st.composite
def structures(draw) -> Structure:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 5))
    have = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    return Structure(
        atomic_numbers=rng.integers(1, 119, size),
        positions=rng.uniform(-20, 20, (size, 3)),
        cell=rng.uniform(-20, 20, (3, 3)),
        pbc=rng.random(3) < 0.5,
        level_of_theory=draw(st.text(max_size=5)),
        structure_id=draw(st.text(max_size=5)),
        group=draw(st.text(max_size=5)),
        labels=present(
            {
                "energy": draw(st.floats(-1e6, 1e6)) if have[0] else None,
                "forces": rng.normal(0, 10, (size, 3)) if have[1] else None,
                "stress": rng.normal(0, 1, (3, 3)) if have[2] else None,
            }
        ),
    )


def assert_same(one: Structure, other: Structure) -> None:
    for name in ("level_of_theory", "structure_id", "group", "energy"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("atomic_numbers", "pbc", "cell", "stress"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.positions, other.positions, rtol=1e-7, atol=0)  # float32 on disk
    assert (one.forces is None) == (other.forces is None)
    if one.forces is not None:
        np.testing.assert_allclose(one.forces, other.forces, rtol=1e-7, atol=0)


@settings(max_examples=30)
@given(st.lists(structures(), min_size=1, max_size=6))
def test_structures_come_back_with_exact_energies_and_missing_labels(originals):
    back = list(Block(to_table(originals)))
    assert len(back) == len(originals)
    for one, other in zip(back, originals, strict=True):
        assert_same(one, other)


def test_shard_file_comes_back_in_row_groups(tmp_path, train_structures, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_SIZE", 8)
    path = tmp_path / "train-00000.parquet"
    entry = write_shard(to_table(train_structures[:20]), path)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [8, 8, 4]
    assert entry["rows"] == 20 and entry["bytes"] == path.stat().st_size
    for one, other in zip(Block(file.read()), train_structures, strict=False):
        assert_same(one, other)


def test_failed_write_leaves_neither_file_nor_temporary(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.json", "{}")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.json", "old")
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.fixture
def broken(data_set, tmp_path) -> Path:
    """A copy of the data set, to break."""
    for path in data_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_truncated_shard_is_named(broken):
    shard = broken / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        BrokenDataSetError, match=rf"^{shard}: shard is truncated.*convert the source again"
    ):
        shard_paths(broken, "train")


def test_missing_shard_is_named(broken):
    shard = broken / "train-00001.parquet"
    shard.unlink()
    with pytest.raises(
        BrokenDataSetError, match=rf"^{shard}: shard is missing: convert the source again"
    ):
        read_info(broken)


def test_column_name_that_is_no_text_is_named(broken):
    shard = broken / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"energy", b"\xe0nergy"))
    with pytest.raises(
        BrokenDataSetError, match=rf"^{shard}: shard was changed.*convert the source again"
    ):
        BlockReader(broken, "train")


def test_newer_schema_is_refused(broken):
    path = broken / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"schema_version": 99}))
    with pytest.raises(
        BrokenDataSetError, match=rf"^{path}: schema 99 is newer than .*: upgrade evenfield"
    ):
        read_info(broken)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"schema_version": null}', '{"builder_name": "parquet"}']
)
def test_damaged_or_foreign_info_is_refused(broken, text):
    path = broken / "dataset_info.json"
    path.write_text(text)
    with pytest.raises(
        BrokenDataSetError, match=rf"^{path}: damaged, or not written by evenfield: convert"
    ):
        read_info(broken)


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("folder", "no dataset_info.json", "name the folder of one; `evenfield data convert"),
        # the command of the remedy reads this file, and does not write over it
        ("data.extxyz", "a file", "`evenfield data convert PLACE FOLDER`, and name that folder"),
        ("foldr", "no such folder", "did you mean"),
        ("xyz", "no such folder", "make it with `evenfield data convert SOURCE PLACE`"),
    ],
)
def test_what_is_no_data_set_is_answered_with_a_command_that_works(tmp_path, name, reason, remedy):
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.extxyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(BrokenDataSetError) as told:
        read_info(tmp_path / name)
    assert f"not a converted data set ({reason})" in told.value.message
    assert remedy.replace("PLACE", str(tmp_path / name)) in told.value.remedy


def test_absent_split_is_named(data_set):
    with pytest.raises(
        BrokenDataSetError, match=r"contains no 'holdout' structures; it has \{'train': \d+"
    ):
        shard_paths(data_set, "holdout")
