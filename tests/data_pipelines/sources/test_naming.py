"""What file names say: splits where they are meant, and ids that do not collide."""

from __future__ import annotations

import pytest

from evenfield.data_pipelines.sources.naming import name_files


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
