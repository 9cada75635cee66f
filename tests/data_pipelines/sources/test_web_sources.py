"""Sources on a web server: failures are told apart, and passwords stay out of what is written."""

from __future__ import annotations

import shutil

import ase.io
import pytest
from typer.testing import CliRunner

from evenfield.core import storage
from evenfield.data_pipelines.commands import app
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.sources import locations
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError, list_files
from evenfield.data_pipelines.sources.read import list_parts, read_structures, source_fingerprint

from folder_hub_server import FolderServer, serve_folder


CONFIG = SourceConfig(level_of_theory="EMT")
PASSWORD = "hunter2"
SIGNATURE = "c0ffee0123"


@pytest.fixture
def server(alloys, tmp_path, monkeypatch):
    """A web server with the file set.extxyz."""
    monkeypatch.setattr(storage, "DELAYS", (0.0, 0.0))
    (tmp_path / "web").mkdir()
    ase.io.write(tmp_path / "web" / "set.extxyz", alloys)
    with serve_folder(tmp_path / "web") as state:
        yield state


def secret_address(server: FolderServer) -> str:
    """The address of the file with a password, and signed."""
    address = server.address.replace("http://", f"http://me:{PASSWORD}@")
    return f"{address}/set.extxyz?X-Amz-Signature={SIGNATURE}"


def shows_secret(text: str) -> bool:
    return PASSWORD in text or SIGNATURE in text


def test_passwords_are_used_and_not_written(server, alloys, tmp_path):
    out = tmp_path / "out"
    config = ConvertConfig(**CONFIG.model_dump() | {"split_by": "structure"})
    info = convert(secret_address(server), out, config)
    assert sum(info["num_structures"].values()) == len(alloys)
    assert info["source"]["file"] == f"{server.address}/set.extxyz"

    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 2
    for path in written:
        assert not shows_secret(path.read_bytes().decode("latin-1")), path


def test_passwords_are_not_printed(server, tmp_path):
    (tmp_path / "web" / "bad.extxyz").write_text("2\nenergy=1\nCu 0 0\n")
    address = secret_address(server)
    words = ["level_of_theory=EMT"]
    for source in (address, address.replace("set.", "bad."), address.replace("set.", "no.")):
        done = CliRunner().invoke(app, ["check-units", source, *words])
        assert not shows_secret(done.output + str(done.exception)), source
    server.status = 503
    server.refusals_left = -1
    with pytest.raises(SourceError, match=r"cannot be reached \(it answers 503") as refusal:
        list_parts(address, CONFIG)
    assert not shows_secret(str(refusal.value))


def test_a_new_signature_is_not_a_new_file(server):
    address = secret_address(server)
    signed_again = address.replace(SIGNATURE, "d00d")
    assert source_fingerprint(address, CONFIG) == source_fingerprint(signed_again, CONFIG)


def test_an_outage_is_no_absence(server):
    name = f"{server.address}/set.extxyz"
    with pytest.raises(SourceError, match="the server has no such file"):
        list_files(f"{server.address}/other.extxyz", (".extxyz",))

    server.status = 503
    server.refusals_left = -1
    with pytest.raises(SourceError, match=r"cannot be reached \(it answers 503"):
        list_files(name, (".extxyz",))
    # HEAD and GET of the first two tries
    server.refusals_left = 4
    assert list_files(name, (".extxyz",)) == [name]


def test_a_file_without_an_end_does_not_fill_the_disk(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    # a disk with ten megabytes left
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 << 20))
    server.endless = "set.extxyz"
    with pytest.raises(SourceError, match=r"has more than 9,437,184 bytes, for which"):
        list(read_structures(f"{server.address}/set.extxyz", CONFIG))
    assert server.endless_bytes < 60 << 20


def test_a_file_of_no_stated_size_has_a_limit_whatever_room_there_is(server, monkeypatch):
    monkeypatch.setattr(locations, "MOST_UNSTATED", 10 << 20)
    server.endless = "set.extxyz"
    with pytest.raises(SourceError, match="its server does not say how many: download the file"):
        list(read_structures(f"{server.address}/set.extxyz", CONFIG))
    assert server.endless_bytes < 60 << 20


# --- paths


@pytest.mark.parametrize(
    "name", ["sets/alloy", "./me/alloys", "~/alloys", "a/b/c", "me/alloys/", "sets\\alloys"]
)
def test_what_looks_like_a_path_is_not_sent_to_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "sets" / "alloys").mkdir(parents=True)

    def ask(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("evenfield.data_pipelines.sources.locations._hub_files", ask)
    with pytest.raises(SourceError, match="no such file") as refusal:
        list_files(name, (".extxyz",))
    if name == "sets/alloy":
        assert "did you mean sets/alloys?" in str(refusal.value)


def test_the_home_folder_is_expanded(alloys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ase.io.write(tmp_path / "set.extxyz", alloys)
    assert list_files("~/set.extxyz", (".extxyz",)) == [str(tmp_path / "set.extxyz")]
    assert list_files("~/*.extxyz", (".extxyz",)) == [str(tmp_path / "set.extxyz")]
    info = convert(
        "~/set.extxyz", tmp_path / "out", ConvertConfig(split_by="structure", level_of_theory="EMT")
    )
    # neither the home folder nor its short form is anybody's business
    assert info["source"]["file"] == "set.extxyz"


def test_offline_the_hub_is_not_blamed(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE keeps evenfield from asking") as refusal:
        list_files("nobody/nothing", (".extxyz",))
    assert "network" not in str(refusal.value)
