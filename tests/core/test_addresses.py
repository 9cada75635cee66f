"""Addresses without their secrets, and names that are meant as paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenfield.core.addresses import local_path, looks_like_path, similar_names, without_secrets
from evenfield.core.errors import EvenfieldError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@host/a.db", "https://host/a.db"),
        # an @ inside the password that nobody escaped
        ("https://me:p@w@host/a", "https://host/a"),
        ("https://token@host/a", "https://host/a"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("simplecache::https://me:pw@host/a.zip", "simplecache::https://host/a.zip"),
        ("https://host/a?X-Amz-Expires=9&X-Amz-Signature=1f", "https://host/a"),
        ("https://host/a?sv=2024&sig=1f&se=2026", "https://host/a"),
        ("https://host/a?access_token=1f", "https://host/a"),
        (f"https://host/a?u={'f' * 40}", "https://host/a"),
        ("no (https://me:pw@host/a?sig=1), try again", "no (https://host/a), try again"),
        ("two: ftp://a:b@c/d, 'http://e:f@g/h?key=1'", "two: ftp://c/d, 'http://g/h'"),
    ],
)
def test_secrets_are_left_out(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.db?download=1&version=2",
        "s3://bucket/a/b.parquet",
        "hf://datasets/me/alloys@main/a.parquet",
        "abfs://container@account.dfs.core.windows.net/a",
        "sftp://jane@host/a",
        "me@example.org wrote 10:30, a/b?c",
        "me/alloys@main",
        "/home/jane/a?sig=1",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_errors_hold_no_secrets_whatever_part_they_are_in() -> None:
    address = "https://me:hunter2@host/a?sig=hunter2"
    error = EvenfieldError(f"no {address}", remedy=f"not {address}", file=address)
    assert "hunter2" not in f"{error} {error.args} {error.__dict__}"


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("me/copper", False),
        ("me/copper@v1", False),
        ("me/alloys@refs/convert/parquet", False),
        ("here/copper@v1", False),
        ("copper", False),
        ("here/copper", True),
        ("./copper", True),
        ("../copper", True),
        ("/copper", True),
        ("~/copper", True),
        ("~jane/copper", True),
        ("a/b/c", True),
        ("me/copper/", True),
        ("me\\copper", True),
        ("me/copper.safetensors", True),
        ("me/copper.EXTXYZ", True),
    ],
)
def test_names_that_look_like_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_path: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert looks_like_path(name) == is_path


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    assert local_path("file:///a") == Path("/a")
    # nobody of that name: the name is taken as it is
    assert local_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


def test_similar_names(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert similar_names(tmp_path / "modle") == [str(tmp_path / "model")]
    assert similar_names(tmp_path / "nothing" / "modle") == []
