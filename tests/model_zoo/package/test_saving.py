"""Saving over a model: the old one or the new one is there as a whole, whatever happens."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evenfield import model_zoo
from evenfield.core import files
from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.core.files import FileError
from evenfield.model_zoo.package import folder as package
from evenfield.model_zoo.package.folder import attach, describe, folder_revision, read_attachment
from evenfield.model_zoo.package.manifest import MANIFEST, revision_of
from evenfield.model_zoo.package.record import Description


FACTS = Description(description="described")


class WritesUntil:
    """`write_atomically`, until the disk is full."""

    def __init__(self, num_writes: int) -> None:
        self.left = num_writes

    def __call__(self, path: Path, data: bytes | str) -> None:
        if self.left == 0:
            raise OSError(28, "No space left on device", str(path))
        self.left -= 1
        files.write_atomically(path, data)


@pytest.mark.parametrize("num_writes", range(5))
@pytest.mark.parametrize("change", ["describe", "attach"])
def test_full_disk_leaves_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int, change: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(package, "write_atomically", WritesUntil(num_writes))

    with pytest.raises(FileError, match="No space left"):
        if change == "describe":
            describe(folder, FACTS)
        else:
            attach(folder, {"probe.extxyz": b"1\n\nCu 0 0 0\n"})

    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before
    assert model_zoo.load(folder).record.name == "copper"
    # nothing half-written is left next to it
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


KILLED = """
import os, signal, sys
from evenfield.model_zoo.package import folder as package
from evenfield.model_zoo.package.record import Description

write = package.write_atomically
left = int(sys.argv[2])

def write_or_die(path, data):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(path, data)

package.write_atomically = write_or_die
package.describe(sys.argv[1], Description(description="described"))
"""


@pytest.mark.parametrize("num_writes", [0, 2, 4])
def test_killed_process_leaves_the_old_model_and_the_next_one_tidies_up(
    folder: Path, num_writes: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), str(num_writes)]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    assert model_zoo.load(folder).record.description == ""

    describe(folder, FACTS)
    assert model_zoo.load(folder).record.description == "described"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_files_of_the_user_stay_and_links_are_not_followed(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_text("not ours")
    notes = folder / "notes"
    notes.mkdir()
    (notes / "today.txt").write_text("mine")
    (folder / "link").symlink_to(outside)
    # a link under the name of a file of the model: the write must not go through it
    card = folder / "README.md"
    text = card.read_bytes()
    card.unlink()
    inside = folder / "card.txt"
    inside.write_bytes(text)
    card.symlink_to(inside)

    describe(folder, FACTS)
    assert (folder / "notes" / "today.txt").read_text() == "mine"
    assert (folder / "link").readlink() == outside
    assert outside.read_text() == "not ours"
    assert inside.read_bytes() == text
    assert not card.is_symlink()
    assert "described" in card.read_text()


def test_folder_that_holds_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")

    with pytest.raises(EvenfieldError, match=r"holds thesis\.tex, and no model"):
        model_zoo.save_model(other, potential, record)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_model_that_an_older_version_left_unfinished_is_replaced(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    (folder / MANIFEST).unlink()
    model_zoo.save_model(folder, potential, record)
    assert model_zoo.load(folder).record == record


def test_model_that_is_replaced_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is of the old model, the next files are of the new one."""
    read = package.read_verified
    replaced = []

    def read_after_replacement(*arguments: object) -> bytes:
        if not replaced:
            replaced.append(True)
            describe(folder, FACTS)
        return read(*arguments)

    monkeypatch.setattr(package, "read_verified", read_after_replacement)
    assert model_zoo.load(folder).record.description == "described"


def test_unlisted_attachment_is_not_part_of_the_model(folder: Path) -> None:
    (folder / "probe.extxyz").write_text("1\n\nAu 0 0 0\n")
    assert read_attachment(folder, "probe.extxyz") is None

    # it is a user's, and is not replaced
    with pytest.raises(DestinationError, match="is no file of the model"):
        attach(folder, {"probe.extxyz": b"1\n\nCu 0 0 0\n"})
    (folder / "probe.extxyz").unlink()
    attach(folder, {"probe.extxyz": b"1\n\nCu 0 0 0\n"})
    assert read_attachment(folder, "probe.extxyz") == b"1\n\nCu 0 0 0\n"


def test_revision_comes_from_the_manifest_and_not_from_a_name(folder: Path) -> None:
    revision = folder_revision(folder)
    assert revision == revision_of((folder / MANIFEST).read_bytes())

    describe(folder, FACTS)
    # the same place, another model
    assert folder_revision(folder) != revision


def test_link_as_a_manifest_must_stay_inside(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.json"
    (folder / MANIFEST).rename(elsewhere)
    (folder / MANIFEST).symlink_to(elsewhere)
    with pytest.raises(model_zoo.BadModelError, match="is a link out of"):
        folder_revision(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_weights_that_no_reader_accepts_are_not_saved(folder: Path, value: float) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = model_zoo.load(folder)
    model.potential.readout.weight.data[0, 0] = value
    with pytest.raises(EvenfieldError, match=r"readout\.weight holds .*lower learning rate"):
        package.save_model(folder, model.potential, model.record)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_without_finite_errors_is_not_saved(folder: Path) -> None:
    before = folder_revision(folder)
    model = package.read_model_folder(folder)
    shipped = model_zoo.load("evenfield-s").evaluation
    assert shipped is not None
    broken = dataclasses.replace(shipped, mae={**shipped.mae, "forces": float("nan")})
    with pytest.raises(EvenfieldError, match="predicts no finite force"):
        package.save_model(folder, model.potential, model.record, broken)
    assert folder_revision(folder) == before
