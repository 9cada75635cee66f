"""Folder hubs that fail, are slow, full or tampered with: what is loaded, and what is said."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from evenfield import model_zoo
from evenfield.core import storage
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo import BadModelError, HubError
from evenfield.model_zoo.hub import folder_hub, remote
from evenfield.model_zoo.hub.folder_hub import FolderHub
from evenfield.model_zoo.hub.load import resolve
from evenfield.model_zoo.hub.remote import UnreachableHubError

from folder_hub_server import FolderServer, serve_folder
from small_models import sound


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVENFIELD_CACHE", str(tmp_path / "cache"))
    # the second and the third try come at once
    monkeypatch.setattr(storage, "DELAYS", (0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FolderServer]:
    """A folder hub on a web server; models are published into its folder."""
    (tmp_path / "hub").mkdir()
    with serve_folder(tmp_path / "hub") as server:
        yield server


def another(folder: Path, place: Path, description: str = "another") -> Path:
    """A copy of a model with another description, and so another revision."""
    potential, record = model_zoo.load_model(folder)
    changed = record.model_copy(update={"description": description})
    return model_zoo.save_model(place, potential, changed, attachments=sound(potential))


def snapshot_of(root: Path, pinned: str) -> Path:
    repo, _, revision = pinned.partition("@")
    return root / repo / "snapshots" / revision


# --- an outage is no absence


def test_a_missing_model_is_not_there(hub: FolderServer) -> None:
    with pytest.raises(HubError, match=r"^me/copper: no such model in the folder hub") as refusal:
        model_zoo.load("me/copper", hub.address)
    assert not isinstance(refusal.value, UnreachableHubError)
    # a certain answer is asked for once
    assert set(hub.requests.values()) == {1}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_hub_that_fails_does_not_say_that_a_model_is_missing(
    hub: FolderServer, folder: Path, status: int
) -> None:
    model_zoo.publish(folder, "me/copper", hub.folder)
    hub.status = status
    hub.refusals_left = -1
    with pytest.raises(UnreachableHubError, match=rf"it answers {status}") as refusal:
        model_zoo.load("me/copper", hub.address)
    assert "no such model" not in str(refusal.value)
    assert hub.requests["/me/copper/refs/main"] == 3


def test_a_hub_that_fails_once_is_asked_again(hub: FolderServer, folder: Path) -> None:
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    hub.status = 503
    hub.refusals_left = 2
    assert model_zoo.load("me/copper", hub.address).reference == pinned


def test_a_silent_hub_is_left_after_a_while(
    hub: FolderServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_zoo.publish(folder, "me/copper", hub.folder)
    monkeypatch.setattr(storage, "SILENCE", 0.3)
    fsspec.filesystem("http").clear_instance_cache()
    hub.is_silent = True
    with pytest.raises(UnreachableHubError, match=r"does not answer \(no answer within"):
        model_zoo.load("me/copper", hub.address)
    fsspec.filesystem("http").clear_instance_cache()


def test_what_is_pinned_and_cached_loads_without_the_hub(hub: FolderServer, folder: Path) -> None:
    pinned = model_zoo.publish(folder, "me/copper", hub.folder, tag="v1")
    model_zoo.load("me/copper", hub.address)
    model_zoo.load("me/copper@v1", hub.address)

    hub.status = 503
    hub.refusals_left = -1
    hub.requests.clear()
    assert model_zoo.load(pinned, hub.address).reference == pinned
    assert not hub.requests

    # names may have moved, so the hub is asked, and what they meant the last time is used
    assert model_zoo.load("me/copper@v1", hub.address).reference == pinned
    assert model_zoo.load("me/copper", hub.address).reference == pinned
    assert hub.requests
    # but nothing is said about names that were never used
    with pytest.raises(UnreachableHubError):
        model_zoo.load("me/copper@v2", hub.address)


# --- a cache that cannot be written


@pytest.mark.parametrize("problem", ["a file in its place", "a full disk", "read-only"])
def test_a_load_does_not_need_the_cache(
    hub: FolderServer,
    folder: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: str,
) -> None:
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    remote._temporary_cache.cache_clear()
    if problem == "a file in its place":
        own_cache.write_text("not a folder")
    else:
        errors = {"a full disk": OSError(28, "No space left on device")}
        error = errors.get(problem, PermissionError(13, "Permission denied"))
        open_file = Path.open

        def fail(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if "r" not in mode and path.is_relative_to(own_cache):
                raise error
            return open_file(path, mode, *rest, **options)

        monkeypatch.setattr(Path, "open", fail)

    with pytest.warns(UserWarning, match="the cache cannot be used .*EVENFIELD_CACHE"):
        model = model_zoo.load("me/copper", hub.address)
    assert model.reference == pinned
    remote._temporary_cache.cache_clear()


def test_the_temporary_copy_goes_with_its_process(hub: FolderServer, folder: Path) -> None:
    model_zoo.publish(folder, "me/copper", hub.folder)
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from evenfield.model_zoo.hub.load import resolve\n"
        f"print(resolve('me/copper', {hub.address!r})[0])"
    )
    environment = os.environ | {"EVENFIELD_CACHE": "/dev/null/cache"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.strip())
    assert place.name == model_zoo.publish(folder, "me/copper", hub.folder).partition("@")[2]
    assert not place.exists()


def test_a_cache_that_cannot_be_read_does_not_hide_a_shipped_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENFIELD_CACHE", "/" + "x" * 300)
    assert model_zoo.load("evenfield-s").record.name == "evenfield-s"


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EVENFIELD_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert remote.cache_folder().is_dir()
    remote._temporary_cache.cache_clear()


# --- a pin is verified


@pytest.mark.parametrize("replacement", ["the whole folder", "a link", "the manifest"])
def test_another_model_under_a_revision_is_refused_and_the_right_one_repairs_it(
    folder: Path, tmp_path: Path, replacement: str
) -> None:
    root = tmp_path / "hub"
    pinned = model_zoo.publish(folder, "me/copper", root)
    false = another(folder, tmp_path / "false")
    place = snapshot_of(root, pinned)
    if replacement == "the manifest":
        shutil.copy(false / "manifest.json", place)
    else:
        shutil.rmtree(place)
        if replacement == "a link":
            place.symlink_to(false)
        else:
            shutil.copytree(false, place)

    for name in (pinned, "me/copper"):
        with pytest.raises(BadModelError, match=r"holds another model|is a link"):
            model_zoo.load(name, root)

    untouched = {path.name: path.read_bytes() for path in false.iterdir()}
    assert model_zoo.publish(folder, "me/copper", root) == pinned
    assert model_zoo.load(pinned, root).record.description != "another"
    assert {path.name: path.read_bytes() for path in false.iterdir()} == untouched


@pytest.mark.parametrize("behind_an_address", [False, True])
def test_a_name_in_the_form_of_a_revision_does_not_redirect_it(
    hub: FolderServer, folder: Path, tmp_path: Path, behind_an_address: bool
) -> None:
    """Its pin was answered with the other model, without a word."""
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    other = model_zoo.publish(another(folder, tmp_path / "other"), "me/copper", hub.folder)
    wanted = pinned.partition("@")[2]
    names = hub.folder / "me" / "copper" / "refs"
    (names / wanted).write_text(other.partition("@")[2])
    where = hub.address if behind_an_address else hub.folder
    assert model_zoo.load(pinned, where).record.description != "another"
    assert model_zoo.load("me/copper", where).record.description == "another"


def test_a_file_in_place_of_a_revision_is_repaired(folder: Path, tmp_path: Path) -> None:
    """The error listed the revision as one that the hub has, and publishing failed."""
    pinned = model_zoo.publish(folder, "me/m", tmp_path / "hub", allow_failed=True)
    snapshot = snapshot_of(tmp_path / "hub", pinned)
    shutil.rmtree(snapshot)
    snapshot.write_text("x")
    with pytest.raises(BadModelError, match="is a file") as told:
        model_zoo.load(pinned, tmp_path / "hub")
    assert "publish it again" in told.value.remedy
    model_zoo.publish(folder, "me/m", tmp_path / "hub", allow_failed=True)
    assert model_zoo.load(pinned, tmp_path / "hub").reference == pinned


def test_the_next_publication_removes_what_a_killed_one_left(folder: Path, tmp_path: Path) -> None:
    """It may be as large as the weights. A young one can be of another publisher at work."""
    pinned = model_zoo.publish(folder, "me/m", tmp_path / "hub", allow_failed=True)
    snapshot = snapshot_of(tmp_path / "hub", pinned)
    hour_ago = time.time() - 3700
    for name in (".domain.json.42beaf04.tmp", ".model.safetensors.0123abcd.tmp", ".mine.tmp"):
        (snapshot / name).write_text("half")
        os.utime(snapshot / name, (hour_ago, hour_ago))
    (snapshot / ".config.json.89abcdef.tmp").write_text("half")
    model_zoo.publish(folder, "me/m", tmp_path / "hub", allow_failed=True)
    left = {path.name for path in snapshot.glob(".*")}
    assert left == {".mine.tmp", ".config.json.89abcdef.tmp"}


@pytest.mark.parametrize("kind", ["garbage", "a loop of links"])
@pytest.mark.parametrize(("name", "tag"), [("main", None), ("v1", "v1")])
def test_a_damaged_name_is_repaired_as_its_error_says(
    folder: Path, tmp_path: Path, name: str, tag: str | None, kind: str
) -> None:
    """Publishing with the tag refused the damaged tag as well."""
    hub = tmp_path / "hub"
    pinned = model_zoo.publish(folder, "me/m", hub, tag=tag, allow_failed=True)
    ref = hub / "me/m/refs" / name
    if kind == "garbage":
        ref.write_text("garbage")
    else:
        ref.unlink()
        ref.symlink_to(ref)
    with pytest.raises(HubError, match=r"is damaged|is a link, and not a file") as told:
        model_zoo.load(f"me/m@{name}", hub)
    wanted = "publish the model again" + ("" if tag is None else f" with --tag {tag}")
    assert told.value.remedy == wanted

    assert model_zoo.publish(folder, "me/m", hub, tag=tag, allow_failed=True) == pinned
    assert model_zoo.load(f"me/m@{name}", hub).reference == pinned


def test_a_folder_in_place_of_a_name_is_named_before_the_upload(
    folder: Path, tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    (hub / "me/m/refs/main").mkdir(parents=True)
    for attempt in (
        lambda: model_zoo.load("me/m", hub),
        lambda: model_zoo.publish(folder, "me/m", hub, allow_failed=True),
    ):
        with pytest.raises(HubError, match="is a folder") as told:
            attempt()
        assert told.value.remedy == "remove it, and publish the model again"
    assert not (hub / "me/m/snapshots").exists()


def test_a_link_to_the_right_model_is_not_followed_either(folder: Path, tmp_path: Path) -> None:
    """What the link leads to may change after the look at its manifest."""
    root = tmp_path / "hub"
    pinned = model_zoo.publish(folder, "me/copper", root)
    place = snapshot_of(root, pinned)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadModelError, match="is a link to another folder"):
        model_zoo.load(pinned, root)


@pytest.mark.parametrize("link", ["me", "me/m", "me/m/refs", "me/m/snapshots"])
def test_folders_that_lead_out_of_a_hub_are_neither_read_nor_written(
    folder: Path, tmp_path: Path, link: str
) -> None:
    hub = tmp_path / "hub"
    pinned = model_zoo.publish(folder, "me/m", hub, allow_failed=True)
    outside = tmp_path / "outside"
    (hub / link).rename(outside)
    (hub / link).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    for attempt in (
        lambda: model_zoo.load("me/m", hub),
        lambda: model_zoo.load(pinned, hub),
        lambda: model_zoo.publish(folder, "me/m", hub, tag="v2", allow_failed=True),
    ):
        with pytest.raises(HubError, match="is a link, and a hub reads and writes only"):
            attempt()
    assert sorted(outside.rglob("*")) == before


def test_a_name_that_is_a_link_is_not_followed_and_the_root_may_be_one(
    folder: Path, tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    pinned = model_zoo.publish(folder, "me/m", hub, tag="v1", allow_failed=True)
    other = tmp_path / "other"
    other.symlink_to(hub)
    assert model_zoo.load("me/m@v1", other).reference == pinned

    outside = tmp_path / "ref"
    (hub / "me/m/refs/v1").rename(outside)
    (hub / "me/m/refs/v1").symlink_to(outside)
    with pytest.raises(HubError, match="is a link, and not a file"):
        model_zoo.load("me/m@v1", hub)


def test_another_model_in_the_cache_is_replaced_by_the_right_one(
    hub: FolderServer, folder: Path, tmp_path: Path
) -> None:
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    false = another(folder, tmp_path / "false")
    place, _ = resolve(pinned, hub.address)
    shutil.rmtree(place)
    shutil.copytree(false, place)
    assert model_zoo.load(pinned, hub.address).record.description != "another"

    shutil.rmtree(place)
    place.symlink_to(false)
    assert model_zoo.load(pinned, hub.address).record.description != "another"
    assert json.loads((false / "config.json").read_text())["record"]["description"] == "another"


def test_files_exchanged_on_a_hub_behind_an_address_are_repaired(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    pinned = model_zoo.publish(folder, "me/copper", "memory://hub")
    revision = pinned.partition("@")[2]
    path = f"/hub/me/copper/snapshots/{revision}/model.safetensors"
    memory.pipe_file(path, b"x" * memory.info(path)["size"])
    with pytest.raises(BadModelError, match="does not match its sha256"):
        model_zoo.load(pinned, "memory://hub")
    assert model_zoo.publish(folder, "me/copper", "memory://hub") == pinned
    assert model_zoo.load(pinned, "memory://hub").reference == pinned


# --- limits


@pytest.mark.parametrize("name", ["refs/main", "manifest.json", "README.md", "model.safetensors"])
def test_a_file_without_an_end_is_not_read_for_ever(
    hub: FolderServer, folder: Path, own_cache: Path, name: str
) -> None:
    model_zoo.publish(folder, "me/copper", hub.folder)
    hub.endless = name
    tracemalloc.start()
    with pytest.raises(BadModelError, match=r"has more than [\d,]+ bytes"):
        model_zoo.load("me/copper", hub.address)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20
    assert hub.endless_bytes < 50 << 20
    assert not list(own_cache.rglob(f"*{Path(name).name}*"))


def test_a_readme_of_the_first_format_has_a_limit_too(
    hub: FolderServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest states no sizes."""
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    place = snapshot_of(hub.folder, pinned)
    hashes = {}
    for name, entry in json.loads((place / "manifest.json").read_text())["files"].items():
        hashes[name] = entry["sha256"]
    text = json.dumps(hashes).encode()
    revision = hashlib.sha256(text).hexdigest()[:16]
    place = place.rename(place.with_name(revision))
    (place / "manifest.json").write_bytes(text)
    hub.endless = "README.md"
    monkeypatch.setattr(remote, "MAX_TEXT_BYTES", 2 << 20)
    with pytest.raises(BadModelError, match=r"README\.md has more than 2,097,152 bytes"):
        model_zoo.load(f"me/copper@{revision}", hub.address)


def test_a_hub_that_sends_byte_by_byte_is_left(
    hub: FolderServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never is silent for long, and what it sends never exceeds a limit."""
    model_zoo.publish(folder, "me/copper", hub.folder)
    monkeypatch.setattr(storage, "SMALL_FILE_SECONDS", 1.0)
    hub.drips = True
    with pytest.raises(UnreachableHubError, match=r"sends only \d+ bytes in 1 s|no answer within"):
        model_zoo.load("me/copper", hub.address)


def test_compressed_answers_are_not_blown_up(hub: FolderServer, folder: Path) -> None:
    """A gigabyte of zeros takes a megabyte on the way; no client asked for that."""
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    bomb = snapshot_of(hub.folder, pinned) / "manifest.json"
    bomb.write_bytes(b"0" * (200 << 20))
    hub.compresses = True
    tracemalloc.start()
    with pytest.raises(EvenfieldError):
        model_zoo.load(pinned, hub.address)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the server's own copy is traced too, since it is a thread of this process
    assert peak < 300 << 20


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(
    hub: FolderServer, folder: Path, own_cache: Path
) -> None:
    """Its error said to fetch again, and every fetch took the damaged one."""
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    model_zoo.load(pinned, hub.address)
    (weights,) = own_cache.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_zoo.load(pinned, hub.address).reference == pinned
    assert bytes(content) != weights.read_bytes()


def test_a_full_disk_is_no_silent_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error spoke of the network."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(folder_hub, "write_atomically", full)
    with pytest.raises(HubError, match="No space left") as told:
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    assert told.value.remedy == "make room on the disk, and start the command again"


def test_a_pipe_in_place_of_a_ref_does_not_block(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    model_zoo.publish(folder, "me/copper", root)
    ref = root / "me/copper/refs/main"
    ref.unlink()
    os.mkfifo(ref)
    with pytest.raises(HubError, match="no such model"):
        model_zoo.load("me/copper", root)


# --- publishers and readers at the same moment


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_of_two_publishers_of_a_tag_one_is_told_that_it_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Both have looked, and found the tag free, before the first one sets it."""
    root: Any = tmp_path / "hub"
    if kind == "memory":
        fsspec.filesystem("memory").store.clear()
        root = "memory://hub"
    folders = [folder, another(folder, tmp_path / "second")]
    both_have_looked = threading.Barrier(2, timeout=60)
    upload = FolderHub._upload_model

    def upload_after_both_looked(hub: FolderHub, *arguments: Any) -> None:
        both_have_looked.wait()
        upload(hub, *arguments)

    monkeypatch.setattr(FolderHub, "_upload_model", upload_after_both_looked)

    def publish(model: Path) -> str:
        try:
            return model_zoo.publish(model, "me/copper", root, tag="v1")
        except HubError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(publish, folders))
    (won,) = (
        outcome for outcome in outcomes if outcome.startswith("me/copper@") and ":" not in outcome
    )
    (lost,) = (outcome for outcome in outcomes if outcome != won)
    assert f"the tag already names revision {won.partition('@')[2]}" in lost
    assert model_zoo.load("me/copper@v1", root).reference == won


def test_threads_that_fetch_the_same_model_do_not_share_temporary_files(
    hub: FolderServer, folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = model_zoo.publish(folder, "me/copper", hub.folder)
    # small pieces, so that the downloads overlap
    monkeypatch.setattr(folder_hub, "CHUNK", 1000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve(pinned, hub.address)[0], range(8)))
    assert len(set(found)) == 1
    assert model_zoo.load(pinned, hub.address).reference == pinned
    assert not [path for path in own_cache.rglob(".*") if path.is_file()]


def test_a_tag_does_not_look_like_a_revision(folder: Path, tmp_path: Path) -> None:
    for tag in ("main", "0123456789abcdef", "0" * 40, "a/b", "", "-x", "v 1", "x" * 97):
        with pytest.raises(HubError, match="cannot be a tag: choose another one of letters"):
            model_zoo.publish(folder, "me/copper", tmp_path / "hub", tag=tag)


@pytest.mark.parametrize(
    ("repo", "remedy"),
    [
        ("copper", "write owner/name"),
        ("./hub/copper", "write owner/name"),
        ("me/cop per", "write owner/name"),
        ("copper@v1", "write owner/name"),
        ("me/" + "c" * 97, "write owner/name"),
        ("me/copper@v1", "publish it as me/copper, with --tag v1"),
    ],
)
def test_a_name_to_publish_under_is_no_reference_to_load(
    folder: Path, tmp_path: Path, repo: str, remedy: str
) -> None:
    with pytest.raises(HubError) as told:
        model_zoo.publish(folder, repo, tmp_path / "hub")
    assert remedy in told.value.remedy
    # these belong to commands that read
    assert "zoo" not in str(told.value) and "neither" not in str(told.value)


def test_a_missing_tag_is_answered_with_the_tags(folder: Path, tmp_path: Path) -> None:
    pinned = model_zoo.publish(folder, "me/copper", tmp_path / "hub", tag="v1")
    with pytest.raises(HubError) as told:
        model_zoo.load("me/copper@v2", tmp_path / "hub")
    assert told.value.remedy == f"it has: main, v1, {pinned.partition('@')[2]}"


# --- addresses with passwords


def test_the_password_of_a_hub_is_not_printed(hub: FolderServer, folder: Path) -> None:
    model_zoo.publish(folder, "me/copper", hub.folder)
    address = hub.address.replace("http://", "http://me:hunter2@")
    assert model_zoo.load("me/copper", address).record.name == "copper"
    hub.status = 503
    hub.refusals_left = -1
    for name in ("me/copper@v1", "me/other"):
        with pytest.raises(HubError) as refusal:
            model_zoo.load(name, address)
        assert "hunter2" not in str(refusal.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a new password does not make another cache
        assert model_zoo.load("me/copper", hub.address).record.name == "copper"
