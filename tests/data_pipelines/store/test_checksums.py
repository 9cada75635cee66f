"""No changed bit of a data set is read as if nothing had happened, and nothing else is read."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from evenfield.data_pipelines.census.census import count_shards, read_census
from evenfield.data_pipelines.store.blocks import BlockReader, iter_structures
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_info, write_info
from evenfield.data_pipelines.structure import SPLITS


@pytest.fixture
def copy(data_set, tmp_path) -> Path:
    """A copy of the data set, to damage."""
    return Path(shutil.copytree(data_set, tmp_path / "set"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def everything(folder: Path) -> str:
    """What a training, an evaluation and a census read, as text."""
    read = [read_info(folder), read_census(folder)]
    for split in SPLITS:
        blocks = BlockReader(folder, split)
        for index in range(len(blocks)):
            read += [structure.labels for structure in blocks.block(index)]
        read += [structure.positions for structure in iter_structures(folder, split)]
    return repr(read)


@pytest.mark.parametrize(
    "name", ["train-00001.parquet", "test-00000.parquet", "census.json", "dataset_info.json"]
)
def test_a_flipped_bit_is_never_silent(copy, name):
    intact = everything(copy)
    path = copy / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), 40, replace=False).tolist():
        flip(path, bit)
        try:
            # a space of JSON may become another space
            assert everything(copy) == intact, f"bit {bit}"
            assert name.endswith(".json")
        except BrokenDataSetError as error:
            assert str(copy) in str(error)
        path.write_bytes(whole)


def test_a_changed_block_does_not_spoil_the_others(copy):
    blocks = BlockReader(copy, "train")
    shard = copy / "train-00000.parquet"
    flip(shard, 8 * 100)
    with pytest.raises(BrokenDataSetError, match=r"train-00000\.parquet: shard was changed"):
        blocks.block(0)
    assert len(blocks.block(1)) > 0


def test_a_census_over_shards_reads_them_whole(copy):
    shards = [copy / name for name in read_info(copy)["shards"]]
    # in the positions, which a census does not read
    flip(shards[0], 8 * (shards[0].stat().st_size // 3))
    with pytest.raises(BrokenDataSetError, match="shard was changed"):
        count_shards(shards)


def test_a_data_set_without_checksums_is_not_read(copy):
    """Without them a flipped bit in the name of the entry would go unnoticed."""
    info = read_info(copy)
    del info["checksum"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(BrokenDataSetError, match="damaged, or not written by evenfield"):
        read_info(copy)


@pytest.mark.parametrize(
    "name", ["../train-00000.parquet", "/etc/train-00000.parquet", "a/train-00000.parquet", ".x"]
)
def test_shards_outside_of_the_folder_are_not_read(copy, name):
    info = read_info(copy)
    entry = info["shards"].pop("train-00000.parquet")
    outside = copy.parent / "train-00000.parquet"
    (copy / "train-00000.parquet").rename(outside)
    info["shards"][name] = entry
    write_info(copy, info)
    with pytest.raises(BrokenDataSetError, match="not the name of a shard"):
        read_info(copy)


@pytest.mark.parametrize("name", ["dataset_info.json", "census.json"])
@pytest.mark.parametrize("text", ["[" * 20_000_000, "[" + "[]," * 7_000_000 + "[]]"])
def test_json_that_is_too_large_is_refused_without_being_parsed(copy, name, text):
    (copy / name).write_text(text)
    tracemalloc.start()
    with pytest.raises(BrokenDataSetError, match=f"{name}: is larger than"):
        read_census(copy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
