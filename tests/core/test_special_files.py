"""Named pipes, sockets and devices in the place of files: refused at once, never waited for."""

from __future__ import annotations

import os
import socket

import pytest

from evenfield.core.addresses import similar_names
from evenfield.core.destination import DestinationError, check_destination
from evenfield.core.files import FileError, file_errors, special_kind
from evenfield.core.settings import Settings, SettingsError, load_settings


@pytest.fixture(params=["a named pipe", "a socket", "a device"])
def special(request, tmp_path, monkeypatch):
    """Path and kind of a special file."""
    if request.param == "a device":
        yield "/dev/zero", request.param
        return
    path = tmp_path / "special.yaml"
    if request.param == "a named pipe":
        os.mkfifo(path)
        yield path, request.param
        return
    # the name of a socket may have a hundred letters only
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
        yield path, request.param


def test_reading_is_refused_before_the_file_is_opened(special):
    path, kind = special
    refusal = pytest.raises(FileError, match=f"is {kind}, not a file: save its content")
    with refusal, file_errors(path):
        pytest.fail("the block has begun")


def test_files_folders_and_addresses_are_not_special(tmp_path):
    (tmp_path / "a").write_text("a")
    for name in (tmp_path, tmp_path / "a", tmp_path / "absent", "s3://a/b", "a\0b"):
        assert special_kind(name) is None


def test_a_recipe_is_a_file(special):
    path, kind = special
    with pytest.raises(SettingsError, match=f"is {kind}, not a file"):
        load_settings(Settings, path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_in_their_place(special, overwrite):
    path, kind = special
    with pytest.raises(DestinationError, match=f"is {kind}: choose another OUT"):
        check_destination(path, overwrite=overwrite)


def test_a_name_is_not_proposed_for_itself(tmp_path):
    (tmp_path / "data.xyz").write_text("")
    (tmp_path / "date.xyz").write_text("")
    assert similar_names(tmp_path / "data.xyz") == [str(tmp_path / "date.xyz")]
