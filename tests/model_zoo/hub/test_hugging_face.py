"""Publish to and load from a Hugging Face hub: the real client, against a server on 127.0.0.1."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from ase.build import bulk
from huggingface_hub import HfApi, ModelCard, constants, file_download

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo import BadModelError, HubError
from evenfield.model_zoo.hub import remote
from evenfield.model_zoo.hub.load import resolve
from evenfield.model_zoo.hub.publish import plan_publication

from model_hub_server import Faults, Hub, serve
from small_models import sharded, sound


# the client of the hub uploads with an argument that its HTTP library deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, with the client logged in as alice and an empty cache.

    The client reads its environment only when it is imported, so its constants are replaced.
    """
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # test_xet.py has the transfer by Xet, which needs a process for each client
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "alice")
        monkeypatch.delenv("EVENFIELD_HUB", raising=False)

        # A session of an earlier test may hold connections to a server that is gone.
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


def clear_cache() -> None:
    shutil.rmtree(constants.HF_HUB_CACHE)


def files_outside_the_cache(folder: Path) -> list[Path]:
    cache = folder / "cache"
    return sorted(path for path in folder.rglob("*") if not path.is_relative_to(cache))


def results(model: model_zoo.LoadedModel) -> tuple[float, bytes, bytes]:
    """Energy, forces and stress of one structure; as bytes, so that == compares every bit."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model.calculator()

    energy = atoms.get_potential_energy()
    forces = atoms.get_forces()
    stress = atoms.get_stress()
    return energy, forces.tobytes(), stress.tobytes()


def newest_tree(hub: Hub, name: str = "alice/copper") -> dict[str, bytes]:
    """The files of the newest commit; a change of it changes the hub."""
    repo = hub.repos[name]
    return repo.commits[repo.main]


def uploads(hub: Hub) -> int:
    return len([line for line in hub.log if line.startswith("PUT /lfs/")])


def test_round_trip_with_a_clean_cache_is_bit_identical(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    sharded(folder, tmp_path / "sharded")
    pinned = model_zoo.publish(tmp_path / "sharded", "alice/copper", tag="v1")
    assert pinned == f"alice/copper@{hub.repos['alice/copper'].main}"
    commits = [line for line in hub.log if "/commit/" in line]
    assert len(commits) == 1
    assert not list((tmp_path / "cache").rglob("*.safetensors"))

    expected = results(model_zoo.load(folder))
    for name in ("alice/copper", "alice/copper@v1", pinned):
        model = model_zoo.load(name)
        assert model.reference == pinned
        assert results(model) == expected
        # or the next name would be answered from the cache
        clear_cache()
    assert HfApi().list_repo_refs("alice/copper").tags[0].name == "v1"


def test_card_on_the_hub_is_what_the_client_parses(hub: Hub, folder: Path) -> None:
    model_zoo.publish(folder, "alice/copper")
    card = ModelCard.load(huggingface_hub.hf_hub_download("alice/copper", "README.md"))
    assert card.data.library_name == "evenfield"
    assert card.data.to_dict()["mlip"]["elements"] == {"EMT": ["Cu", "Au"], "PBE": ["Cu"]}
    assert any("/api/validate-yaml" in line for line in hub.log)


def test_publishing_again_sends_only_what_changed_and_drops_old_shards(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    first = model_zoo.publish(sharded(folder, tmp_path / "sharded"), "alice/copper")
    second = model_zoo.publish(folder, "alice/copper")
    assert second != first
    tree = newest_tree(hub)
    assert [name for name in tree if name.endswith(".safetensors")] == [WEIGHTS]
    # the hub made this file, and no manifest lists it
    assert ".gitattributes" in tree

    sent_before = uploads(hub)
    assert model_zoo.publish(folder, "alice/copper") == second
    assert uploads(hub) == sent_before
    assert results(model_zoo.load(first)) == results(model_zoo.load(second))


def test_private_model(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_zoo.publish(folder, "alice/secret", private=True)
    assert hub.repos["alice/secret"].private
    assert model_zoo.load("alice/secret").record.name == "copper"
    clear_cache()

    refusals = {
        "": "or it is private",
        "bob": "or it is private",
        "nobody": "does not know your token",
    }
    for token, message in refusals.items():
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match=rf"^alice/secret: .*{message}"):
            model_zoo.load("alice/secret")


def test_public_model_does_not_become_private_by_asking(hub: Hub, folder: Path) -> None:
    model_zoo.publish(folder, "alice/copper")
    before = hub.repos["alice/copper"].main
    with pytest.raises(HubError, match="exists already and is public"):
        model_zoo.publish(folder, "alice/copper", private=True)
    assert hub.repos["alice/copper"].main == before


@pytest.mark.parametrize(
    ("token", "message"),
    [("bob", "forbids it"), ("nobody", "does not know your token"), ("", "log in|does not know")],
)
def test_publishing_without_permission(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message):
        model_zoo.publish(folder, "alice/copper")
    assert not hub.repos


def test_two_publishers_at_once(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Somebody else commits between a publisher's look and its commit: nothing is published."""
    model_zoo.publish(folder, "alice/copper")
    other = sharded(folder, tmp_path / "other")

    def publish_in_between() -> None:
        tree = dict(newest_tree(hub))
        tree["note.md"] = b"by somebody else"
        hub.repos["alice/copper"].commit(tree)

    hub.faults.before_commit = publish_in_between
    with pytest.raises(HubError, match="somebody else published in between"):
        model_zoo.publish(other, "alice/copper", tag="v2")
    assert "note.md" in newest_tree(hub)
    assert WEIGHTS in newest_tree(hub)
    repo = hub.repos["alice/copper"]
    assert "v2" not in repo.tags

    # a second try goes on top of what the other one did
    model_zoo.publish(other, "alice/copper", tag="v2")
    assert repo.tags["v2"] == repo.main


def test_publishers_in_threads(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Each model is published completely or not at all, and the last one remains."""
    model_zoo.publish(folder, "alice/copper")
    potential, record = model_zoo.load_model(folder)
    names = ["by the first", "by the second", "by the third"]
    folders = []
    for name in names:
        described = record.model_copy(update={"description": name})
        checks = sound(potential)
        place = tmp_path / name
        folders.append(model_zoo.save_model(place, potential, described, attachments=checks))

    def publish(model: Path) -> str:
        try:
            return model_zoo.publish(model, "alice/copper")
        except HubError as error:
            assert "somebody else published in between" in str(error)
            return "refused"

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(publish, folders))
    pinned = [outcome for outcome in outcomes if outcome != "refused"]
    assert len(pinned) >= 1
    assert len(set(pinned)) == len(pinned)

    for outcome, name in zip(outcomes, names, strict=True):
        if outcome != "refused":
            assert model_zoo.load(outcome).record.description == name
    assert model_zoo.load("alice/copper").reference in pinned
    # every check of responses was removed again
    assert huggingface_hub.get_session().event_hooks["response"] == []


def test_a_tag_never_moves(hub: Hub, folder: Path, tmp_path: Path) -> None:
    model_zoo.publish(folder, "alice/copper", tag="v1")
    with pytest.raises(HubError, match="the tag is taken"):
        model_zoo.publish(sharded(folder, tmp_path / "other"), "alice/copper", tag="v1")


def test_offline_what_the_cache_holds_still_loads(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = model_zoo.publish(folder, "alice/copper", tag="v1")
    for name in ("alice/copper", "alice/copper@v1"):
        model_zoo.load(name)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.log)
    for name in ("alice/copper", "alice/copper@v1", pinned):
        assert model_zoo.load(name).reference == pinned
    with pytest.raises(HubError, match="HF_HUB_OFFLINE keeps evenfield from asking") as refusal:
        model_zoo.load("alice/other")
    assert "network" not in str(refusal.value)
    with pytest.raises(HubError, match="cannot be downloaded again while HF_HUB_OFFLINE is set"):
        resolve(pinned, force=True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE keeps .*: unset HF_HUB_OFFLINE"):
        model_zoo.publish(folder, "alice/copper")
    assert len(hub.log) == requests
    clear_cache()
    with pytest.raises(HubError, match="not in the cache"):
        model_zoo.load(pinned)


def test_half_a_model_in_the_cache_is_not_loaded_offline(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_zoo.publish(folder, "alice/copper")
    huggingface_hub.hf_hub_download("alice/copper", "manifest.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the cache"):
        model_zoo.load("alice/copper")


def test_client_resumes_a_cut_connection(hub: Hub, folder: Path) -> None:
    model_zoo.publish(folder, "alice/copper")
    hub.faults.cut_body_after = 5_000
    hub.faults.cuts_left = 1
    assert results(model_zoo.load("alice/copper")) == results(model_zoo.load(folder))
    assert hub.faults.cuts_left == 0


def test_a_failed_download_continues_with_the_missing_shards(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_zoo.publish(sharded(folder, tmp_path / "sharded"), "alice/copper")
    shards = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    first, second = shards[:2]
    good = newest_tree(hub).pop(second)
    with pytest.raises(HubError, match="does not have all files of an evenfield model"):
        model_zoo.load("alice/copper")

    newest_tree(hub)[second] = good
    # the client remembers what a commit does not have, since commits do not change
    absent = Path(constants.HF_HUB_CACHE) / "models--alice--copper" / ".no_exist"
    shutil.rmtree(absent, ignore_errors=True)

    before = dict(hub.sent)
    assert results(model_zoo.load("alice/copper")) == results(model_zoo.load(folder))
    assert hub.sent[first] == before[first]
    assert second not in before
    assert second in hub.sent


@pytest.mark.parametrize("problem", ["a file in its place", "a full disk"])
def test_a_load_does_not_need_the_cache(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    pinned = model_zoo.publish(folder, "alice/copper")
    remote._temporary_cache.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    if problem == "a file in its place":
        (tmp_path / "other").write_text("not a folder")
    else:
        download = file_download._download_to_tmp_and_move

        def fail(**arguments: Any) -> None:
            if arguments["destination_path"].is_relative_to(tmp_path):
                # what writing raises: without the name of the file
                raise OSError(errno.ENOSPC, "No space left on device")
            download(**arguments)

        monkeypatch.setattr(file_download, "_download_to_tmp_and_move", fail)

    with pytest.warns(UserWarning, match="the cache cannot be used .*HF_HOME"):
        model = model_zoo.load("alice/copper")
    assert model.reference == pinned
    remote._temporary_cache.cache_clear()


@pytest.mark.parametrize("name", ["manifest.json", "README.md", WEIGHTS])
def test_a_file_larger_than_stated_is_not_downloaded(hub: Hub, folder: Path, name: str) -> None:
    model_zoo.publish(folder, "alice/copper")
    hub.faults.replace = {name: b" " * (5 << 20)}
    with pytest.raises(BadModelError, match=rf"{name} has 5,242,880 bytes"):
        model_zoo.load("alice/copper")
    assert name not in hub.sent


@pytest.mark.parametrize("name", ["manifest.json", "README.md"])
def test_a_file_larger_than_announced_is_cut(
    hub: Hub, folder: Path, tmp_path: Path, name: str
) -> None:
    """The hub states a small size, or none, and sends a compressed gigabyte of blanks."""
    model_zoo.publish(folder, "alice/copper")
    hub.faults.blow_up = name
    with pytest.raises(BadModelError, match=rf"{name} has more than [\d,]+ bytes"):
        model_zoo.load("alice/copper")
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert max(sizes) < 30 << 20


def test_of_two_publishers_of_a_tag_one_is_told_that_it_lost(hub: Hub, folder: Path) -> None:
    """The tag appears between the look at the tags and the end of the upload."""

    def take_the_tag() -> None:
        repo = hub.repos["alice/copper"]
        repo.tags["v1"] = repo.main

    hub.faults.before_commit = take_the_tag
    with pytest.raises(HubError, match=r"@v1: somebody else took the tag in between; the model is"):
        model_zoo.publish(folder, "alice/copper", tag="v1")


@pytest.mark.parametrize(
    "reference",
    [
        "runs/modle",
        "./alice/copper",
        "~/copper",
        "alice/model.safetensors",
        "a/b/c",
        "alice/copper/",
    ],
)
def test_what_looks_like_a_path_is_not_sent_to_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "runs" / "model").mkdir(parents=True)
    with pytest.raises(HubError, match=r"no such folder") as refusal:
        model_zoo.load(reference)
    assert hub.log == []
    if reference == "runs/modle":
        assert "did you mean runs/model?" in str(refusal.value)


def test_a_name_next_to_a_folder_is_asked_for_with_a_revision(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = model_zoo.publish(folder, "alice/copper")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    with pytest.raises(HubError, match="name a revision: alice/copper@main"):
        model_zoo.load("alice/copper")
    assert model_zoo.load("alice/copper@main").reference == pinned


def test_the_home_folder_is_expanded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert model_zoo.load(f"~/{folder.name}").record.name == "copper"
    assert plan_publication(f"~/{folder.name}", "me/copper").repo == "me/copper"


def test_wrong_names_and_revisions(hub: Hub, folder: Path) -> None:
    model_zoo.publish(folder, "alice/copper")
    del newest_tree(hub)["README.md"]
    refusals = {
        "alice/silver": "no such model on the hub, or it is private",
        "alice/copper@v9": "no such revision",
        "alice/copper": "does not have all files",
    }
    for name, message in refusals.items():
        with pytest.raises(HubError, match=message):
            model_zoo.load(name)


LEADING_OUT = (
    b'{"format_version": 2, "files": {"../../outside.json": {"sha256": "%s", "bytes": 1}}}'
    % (b"0" * 64)
)
# What a hub sends instead of the right answer, and a pattern of the message. A mapping replaces
# headers or files by name, a text is the target of a redirect, a number is the status.
ANSWERS: dict[str, tuple[Any, str]] = {
    "commit that is a path": (
        {"X-Repo-Commit": "../../../../outside"},
        "sends an invalid commit or ETag",
    ),
    "commit of another length": (
        {"X-Repo-Commit": "abc"},
        "sends an invalid commit or ETag",
    ),
    "ETag that is a path": (
        {"ETag": '"../../../../outside"'},
        "sends an invalid commit or ETag",
    ),
    "linked ETag that is a path": (
        {"X-Linked-Etag": "../../../outside"},
        "sends an invalid commit or ETag",
    ),
    "absolute ETag": ({"ETag": '"/tmp/outside"'}, "sends an invalid commit or ETag"),
    "no commit": ({"X-Repo-Commit": ""}, "sends an invalid commit or ETag"),
    "redirect to a file": (
        "file:///etc/passwd",
        "redirects to file:///etc/passwd, which is not a web address",
    ),
    "redirect to ftp": (
        "ftp://127.0.0.1/a",
        "redirects to ftp://127.0.0.1/a, which is not a web address",
    ),
    "weights of somebody else": (
        {WEIGHTS: b"x" * 30_000},
        r"has 30,000 bytes, but manifest\.json states",
    ),
    "manifest that is a page": ({"manifest.json": b"<html>log in</html>"}, "is not valid JSON"),
    "manifest with a path": ({"manifest.json": LEADING_OUT}, "is not the name of a file"),
    "server error": (500, "the Hugging Face hub answers 500"),
    "teapot": (418, "the Hugging Face hub answers 418"),
    "too many requests": (429, "the Hugging Face hub answers 429"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_malicious_answer_is_refused(
    hub: Hub, folder: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and no file outside the cache; the client alone would write where an ETag leads."""
    model_zoo.publish(folder, "alice/copper")
    bend, message = ANSWERS[case]
    before = files_outside_the_cache(tmp_path)
    if isinstance(bend, int):
        hub.faults.status = bend
        # the client waits between its retries
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    elif isinstance(bend, str):
        hub.faults.redirect = bend
    elif any(name in bend for name in (WEIGHTS, "manifest.json")):
        hub.faults.replace = bend
    else:
        hub.faults.headers = bend
    with pytest.raises(EvenfieldError, match=message) as refusal:
        model_zoo.load("alice/copper")
    line = str(refusal.value)
    assert "\n" not in line
    # a file that arrived is named by its place in the cache
    assert line.startswith("alice/copper") or "models--alice--copper" in line
    assert files_outside_the_cache(tmp_path) == before

    # once the hub answers well again, the same model loads
    hub.faults = Faults()
    assert results(load_forced("alice/copper")) == results(model_zoo.load(folder))


def load_forced(name: str) -> model_zoo.LoadedModel:
    resolve(name, force=True)
    return model_zoo.load(name)


def test_weights_too_large_for_their_architecture_are_not_fetched(hub: Hub, folder: Path) -> None:
    model_zoo.publish(folder, "alice/copper")
    tree = newest_tree(hub)
    size = str(len(tree[WEIGHTS])).encode()
    tree["manifest.json"] = tree["manifest.json"].replace(size, b"99999999999")
    with pytest.raises(
        BadModelError, match=r"states 99,999,999,999 bytes of weights.*no weights were downloaded"
    ):
        model_zoo.load("alice/copper")
    assert WEIGHTS not in hub.sent
