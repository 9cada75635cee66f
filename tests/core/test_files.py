"""Files are written whole or not at all, by any number of writers, and never through a link."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evenfield.core.files import (
    FileError,
    copy_folder,
    file_errors,
    whole_file,
    write_atomically,
    write_together,
)
from evenfield.core.locks import LockedError, held


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [str(number) * 10_000 for number in range(10)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_atomically(path, text), texts * 20))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("of somebody else")
    link = tmp_path / "link"
    link.symlink_to(target)

    write_atomically(link, "mine")

    assert target.read_text() == "of somebody else"
    assert link.read_text() == "mine"


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    refusal = LockedError("is held")
    with pytest.raises(FileError), held(tmp_path / ".lock", refusal):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    refusal = LockedError("is held")
    for _ in range(2):
        with (
            held(tmp_path / "deep" / ".lock", refusal),
            pytest.raises(LockedError),
            held(tmp_path / "deep" / ".lock", refusal),
        ):
            pass
    assert list((tmp_path / "deep").iterdir()) == []


def test_errors_of_the_operating_system_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="absent: No such file"), file_errors(tmp_path):
        (tmp_path / "absent").read_text()


def test_a_folder_is_copied_until_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a").write_text("a")
    (source / "b").write_text("b")
    target = tmp_path / "target"
    copy_folder(source, target)
    assert (target / "inner" / "a").read_text() == "a" and (target / "b").read_text() == "b"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(FileError, match="No space left on device: make room on the disk"):
        copy_folder(source, tmp_path / "another")


def test_files_that_belong_together(tmp_path: Path) -> None:
    """None takes its place where another cannot be written."""
    first, second = tmp_path / "a.json", tmp_path / "b.html"
    write_together({first: "1", second: b"2"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    with pytest.raises(FileError, match="absent"):
        write_together({first: "3", tmp_path / "absent" / "b.html": "4"})
    assert first.read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [first, second]
