"""What file names say: splits where they are meant, and ids that do not collide."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pytest

from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.naming import SPLIT_WORDS, name_files, stated_split
from evenfield.data_pipelines.sources.records import Record, structure_from_record


def splits(*names: str) -> list[str | None]:
    found = name_files(names)
    return [found[name].split for name in names]


def prefixes(*names: str) -> list[str]:
    found = name_files(names)
    return [found[name].id_prefix for name in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b/test.xyz", "b/train.xyz", "b/val.xyz"], ["test", "train", "valid"]),
        (["b/water_train.xyz.gz", "b/water-Validation.xyz.gz"], ["train", "valid"]),
        (["b/train/a.traj", "b/test_300K/a.traj", "b/more.traj"], ["train", "test", None]),
        # the file's own name comes first
        (["b/test/train.xyz", "b/test/test.xyz"], ["train", "test"]),
        (["b/contest.xyz", "b/trainer.xyz"], [None, None]),
        (["b/train_test.xyz", "b/val.xyz"], [None, None]),
        # nothing to compare with: called so by chance
        (["b/test.xyz"], [None]),
        (["b/train_1.xyz", "b/train_2.xyz"], [None, None]),
    ],
)
def test_splits_of_names(names, expected):
    assert splits(*names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x/md.extxyz"], ["md"]),
        (["x/a/md.extxyz", "x/b/md.extxyz"], ["a/md", "b/md"]),
        (["x/md.extxyz", "x/md.traj"], ["md.extxyz", "md.traj"]),
        (["x/train/0000.parquet", "x/test/0000.parquet"], ["train-0000", "test-0000"]),
        (["s3://b/x/a/md.db", "s3://b/x/b/md.db"], ["a/md", "b/md"]),
        (["s3://b/xa/md.db", "s3://b/xb/md.db"], ["xa/md", "xb/md"]),
    ],
)
def test_prefixes_of_default_ids(names, expected):
    assert prefixes(*names) == expected


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_columns_and_file_names_say_a_split_in_the_same_words(word):
    stated = Record(
        atomic_numbers=np.array([1]),
        positions=np.zeros((1, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        info={"split": word},
    )
    config = SourceConfig(level_of_theory="made")
    (of_file,) = {stated_split(PurePosixPath(f"water_{word}.xyz"))}
    assert structure_from_record(stated, config, "a").split == of_file == SPLIT_WORDS[word]
