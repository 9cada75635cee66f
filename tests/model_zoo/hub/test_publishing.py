"""What publishing refuses, what a dry run shows, and folder hubs, on a disk and on S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry as known_classes

from evenfield import cli, model_zoo
from evenfield.core import storage
from evenfield.core.errors import EvenfieldError, MissingPackageError
from evenfield.model_zoo import BadModelError, HubError
from evenfield.model_zoo.evaluation.summary import ErrorSummary
from evenfield.model_zoo.hub import publish as publishing
from evenfield.model_zoo.hub.folder_hub import FolderHub
from evenfield.model_zoo.hub.load import resolve
from evenfield.model_zoo.hub.publish import plan_publication
from evenfield.model_zoo.package.record import DataSource, TrainingData

from small_models import sound


def with_record(folder: Path, **changes: Any) -> Path:
    """The model of a folder, saved again with a changed record."""
    potential, record = model_zoo.load_model(folder)
    changed = record.model_copy(update=changes)
    return model_zoo.save_model(folder, potential, changed, attachments=sound(potential))


# what a record's `training` holds, and a pattern of the message
LEAKS = {
    "token": (
        {"env": {"HF_TOKEN": "hf_abcdefghijklmnopqrstuv"}},
        r"env\.HF_TOKEN holds a token \(hf_abc\.\.\.\)",
    ),
    "github token": ({"note": "ghp_abcdefghijklmnopqrstuvwxyz012345"}, "holds a token"),
    "cloud key": ({"key": "AKIAABCDEFGHIJKLMNOP"}, "holds a cloud key"),
    "password by its key": ({"db": {"password": "correcthorse"}}, "holds a password"),
    "private key": ({"key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "holds a private key"),
    "path in a sentence": (
        {"note": "from /home/jane/runs/model"},
        r"holds an absolute path \(/home/\.\.\.\)",
    ),
    "path as a key": ({"/home/jane/runs": 1}, "holds an absolute path"),
    "path as an option": ({"command": "train --out=/scratch/jane/x"}, "holds an absolute path"),
    "home folder": ({"note": "see ~/runs"}, "holds an absolute path"),
    "path of another system": ({"note": r"C:\Users\jane"}, "holds an absolute path"),
    "user": ({"note": "by jdoe2"}, "holds the name of a user or machine"),
}


@pytest.mark.parametrize("case", LEAKS)
def test_what_others_must_not_see(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "jdoe2")
    training, message = LEAKS[case]
    with_record(folder, training=training)
    expected = f"not fit to publish: config.json: record.*{message}"
    with pytest.raises(BadModelError, match=expected) as refusal:
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    # a message ends up in logs: it must not show the secret that it warns of
    assert "abcdefghij" not in str(refusal.value)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("/home/jane/probe.xyz", "an absolute path"),
        ("https://bucket.org/a?X-Amz-Signature=0123", "a cloud key"),
        ("https://me:pass@host.org/a", "a password"),
    ],
)
def test_leak_in_an_attachment(folder: Path, tmp_path: Path, source: str, kind: str) -> None:
    potential, record = model_zoo.load_model(folder)
    probe = f'1\nsource="{source}"\nCu 0 0 0\n'.encode()
    model_zoo.save_model(folder, potential, record, attachments={"probe.extxyz": probe})
    with pytest.raises(BadModelError, match=rf"probe\.extxyz: line 2 holds {kind}"):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")


def test_a_record_loses_the_passwords_of_its_addresses(folder: Path) -> None:
    """A data set of an older version may still have them."""
    data = {"a": "https://me:hunter2@host.org/a", "b": ["s3://b/c?X-Amz-Signature=hunter2"]}
    with_record(folder, training=data, description="from https://me:hunter2@host.org/a")
    for path in folder.iterdir():
        assert b"hunter2" not in path.read_bytes(), path
    training = model_zoo.load(folder).record.training
    assert training == {"a": "https://host.org/a", "b": ["s3://b/c"]}


def test_units_addresses_and_references_are_no_leaks(folder: Path, tmp_path: Path) -> None:
    fine = {
        "units": "eV, eV/A, eV/A^3 and eV/atom",
        "data": [
            "https://example.org/a/b.parquet",
            "s3://bucket/data/set",
            "owner/name@main",
            "a/b/c.yaml",
        ],
        "note": "1/2 of the steps, and/or less; N/A; 10:30",
        "tokens": "tokenised",
    }
    with_record(folder, training=fine)
    assert plan_publication(folder, "me/copper").leaks == []
    model_zoo.publish(folder, "me/copper", tmp_path / "hub")


def test_a_model_of_sources_that_forbid_it_is_not_published(folder: Path, tmp_path: Path) -> None:
    """The card names the sources, and whom to credit."""
    free = DataSource(
        name="mptrj",
        licence="MIT AND CC-BY-4.0",
        citation="Deng et al., Nat. Mach. Intell. 5, 1031 (2023)",
        url="https://example.org/mptrj",
        known_faults="|F| up to 202 eV/A",
        attribution=True,
        levels_of_theory=["PBE"],
        num_structures=20,
    )
    closed = DataSource(name="dnp", licence="GPL-3.0-only", publishable=False, num_structures=3)
    corpus = TrainingData(
        name="both",
        sha256="0" * 64,
        licence="GPL-3.0-only AND MIT",
        num_structures=23,
        sources=[free, closed],
    )
    with_record(folder, training_data=[corpus])

    card = (folder / "README.md").read_text()
    assert (
        "| [mptrj](https://example.org/mptrj) | 20 | PBE | MIT AND CC-BY-4.0 | Deng et al." in card
    )
    assert "| \\|F\\| up to 202 eV/A |" in card
    assert "| dnp | 3 |  | GPL-3.0-only (**not publishable**) | none stated | - |" in card
    credit = "- mptrj: Deng et al., Nat. Mach. Intell. 5, 1031 (2023) (MIT AND CC-BY-4.0, https://"
    assert credit in card
    expected = "lacks training data whose licences allow a public model: train without the sources"
    with pytest.raises(BadModelError, match=expected):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")

    with_record(folder, training_data=[corpus.model_copy(update={"sources": [free]})])
    assert plan_publication(folder, "me/copper").leaks == []
    model_zoo.publish(folder, "me/copper", tmp_path / "hub")


@pytest.mark.parametrize(
    ("licence", "is_named"), [("GPL-3.0-only", True), ("in house", True), ("MIT", False)]
)
def test_data_that_may_forbid_a_public_model_are_named(
    folder: Path, licence: str, is_named: bool
) -> None:
    """Outside of a corpus the publisher may own the data, so this is no refusal."""
    data = TrainingData(name="mine.xyz", sha256="0" * 64, licence=licence, num_structures=3)
    with_record(folder, training_data=[data])
    advice = plan_publication(folder, "me/copper").advice
    named = [line for line in advice if line.startswith("permission of whoever owns the data set")]
    assert len(named) == is_named
    assert all("mine.xyz" in line and licence in line for line in named)


@pytest.mark.parametrize(
    ("changes", "lack", "remedy"),
    [
        ({"licence": None}, "licence", "add one with `evenfield hub describe"),
        ({"training_data": []}, "training data", "train on a converted data set"),
        ({"licence": None, "training_data": []}, "licence, training data", "add one .*; train on"),
    ],
)
def test_record_that_lacks_facts(
    folder: Path, tmp_path: Path, changes: dict[str, Any], lack: str, remedy: str
) -> None:
    with_record(folder, **changes)
    with pytest.raises(BadModelError, match=f"its record lacks {lack}: {remedy}"):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")


def test_unnamed_level_of_theory(tmp_path: Path, folder: Path) -> None:
    _, record = model_zoo.load_model(folder)
    potential = model_zoo.Potential(model_zoo.PotentialConfig(channels=4))
    unnamed = record.model_copy(
        update={"elements": {"default": ["Cu"]}, "default_level": "default"}
    )
    model_zoo.save_model(folder, potential, unnamed)
    with pytest.raises(BadModelError, match="lacks level of theory"):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_dry_run_shows_everything_and_sends_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with_record(folder, licence=None, training={"note": "/home/jane/x"})
    hub = ("--folder-hub", tmp_path / "hub")
    # the path by itself was cut when the model was saved
    assert run(monkeypatch, "hub", "publish", folder, "me/copper", "--dry-run", *hub) == 0
    shown = capsys.readouterr().out
    for text in (
        "model.safetensors",
        "manifest.json",
        "refused, its record lacks: licence",
        "the model would be refused",
        "better with: level_details of EMT",
        "better with: probe set (probe.extxyz)",
        "better with: verdicts about simulations (`evenfield check physics MODEL --attach`)",
    ):
        assert text in shown
    assert "refused, it shows" not in shown

    about = [
        "licence=Apache-2.0",
        "description=copper and gold",
        "level_details.EMT=effective medium theory",
    ]
    assert run(monkeypatch, "hub", "describe", folder, *about) == 0
    assert run(monkeypatch, "hub", "publish", folder, "me/copper", "--dry-run", *hub) == 0
    shown = capsys.readouterr().out
    assert "the model would be accepted" in shown
    assert "level_details of EMT" not in shown
    assert "effective medium theory" in (folder / "README.md").read_text()
    assert not (tmp_path / "hub").exists()

    capsys.readouterr()
    assert run(monkeypatch, "hub", "publish", folder, "me/copper", *hub, "--tag", "v1") == 0
    output = capsys.readouterr()
    assert "better with verdicts about simulations" in output.err
    # alone, for scripts
    assert output.out.startswith("me/copper@")
    assert run(monkeypatch, "hub", "pull", "me/copper@v1", *hub) == 0
    assert "complete and verified: me/copper@" in capsys.readouterr().out
    # the model has no such level of theory
    assert run(monkeypatch, "hub", "describe", folder, "level_details.HSE=x") == 1


def test_describing_keeps_weights_evaluation_and_attachments(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    evaluation = ErrorSummary.from_dict({"split": "test", "num_structures": 3, "num_atoms": 9})
    model_zoo.save_model(folder, potential, record, evaluation, attachments={"a.json": b"{}"})
    weights = (folder / "model.safetensors").read_bytes()
    from evenfield.model_zoo.package.folder import describe
    from evenfield.model_zoo.package.record import Description

    describe(folder, Description(citation="A. Author, 2026"))
    again = model_zoo.load(folder)
    assert again.record == record.model_copy(update={"citation": "A. Author, 2026"})
    assert again.attachments["a.json"] == b"{}"
    assert again.evaluation == evaluation
    assert (folder / "model.safetensors").read_bytes() == weights
    assert "A. Author, 2026" in (folder / "README.md").read_text()


# --- folder hubs


def test_missing_storage_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    fsspec.get_filesystem_class("s3")
    # fsspec keeps the class of each protocol that was used, whether its package is there or not.
    monkeypatch.delitem(known_classes, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'evenfield\[s3\]'"):
        model_zoo.publish(folder, "me/copper", "s3://bucket/hub")


def test_unknown_kind_of_address(folder: Path) -> None:
    with pytest.raises(HubError, match=r"nowhere://hub cannot be used .*: check its address"):
        model_zoo.publish(folder, "me/copper", "nowhere://hub")


def test_mistake_in_the_code_keeps_its_traceback(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug must not be shown as a hub that cannot be used."""
    monkeypatch.setattr(FolderHub, "_ref", lambda *_: None + 1)
    with pytest.raises(TypeError):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")


def test_tags_of_a_folder_hub_never_move(folder: Path, tmp_path: Path) -> None:
    first = model_zoo.publish(folder, "me/copper", tmp_path / "hub", tag="v1")
    with_record(folder, description="another")
    with pytest.raises(HubError, match=r"the tag already names revision"):
        model_zoo.publish(folder, "me/copper", tmp_path / "hub", tag="v1")
    second = model_zoo.publish(folder, "me/copper", tmp_path / "hub", tag="v2")
    assert second != first
    assert model_zoo.load("me/copper@v1", tmp_path / "hub").reference == first
    assert model_zoo.load("me/copper", tmp_path / "hub").reference == second


@pytest.fixture(params=["memory", "s3"])
def address(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """The address of an empty remote folder hub: in memory, or on moto's S3 server.

    The server is found by environment variables, as a user's client finds one.
    """
    monkeypatch.setenv("EVENFIELD_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        yield "memory://hub"
        return

    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # fsspec keeps its clients, and an earlier one talks to a server that is gone
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("models")
    yield "s3://models/hub"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_hub_behind_an_address(
    folder: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential, record = model_zoo.load_model(folder)
    checks = sound(potential)
    model_zoo.save_model(folder, potential, record, attachments=checks, max_shard_bytes=20_000)
    with pytest.raises(HubError, match=f"me/copper: no such model in the folder hub {address}"):
        model_zoo.load("me/copper", address)

    pinned = model_zoo.publish(folder, "me/copper", address, tag="v1")
    assert model_zoo.load("me/copper@v1", address).reference == pinned
    monkeypatch.setenv("EVENFIELD_HUB", address)
    where, _ = resolve("me/copper")
    for path in folder.iterdir():
        assert (where / path.name).read_bytes() == path.read_bytes()

    # one shard is lost and another damaged: only these are downloaded again
    shards = sorted(where.glob("model-*.safetensors"))
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    shards[2].write_bytes(b"damaged")
    # without its manifest a copy is unfinished; with it, the cache is not looked into
    (where / "manifest.json").unlink()
    assert model_zoo.load("me/copper").reference == pinned
    assert shards[0].stat().st_mtime_ns == kept

    # out of reach: what the cache holds still loads, also by the names that were used before
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    file_system, _ = fsspec.url_to_fs(address)
    monkeypatch.setattr(type(file_system), "open", fail)
    monkeypatch.setattr(storage, "DELAYS", (0.0,))

    assert model_zoo.load("me/copper@v1").reference == pinned
    assert model_zoo.load("me/copper").reference == pinned
    with pytest.raises(
        HubError, match=r"me/other@main: the folder hub .* does not answer \(no network\)"
    ):
        model_zoo.load("me/other")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"{}", "is not the one that was published"),
        ("config.json", b"{}", "does not match its sha256"),
        ("model.safetensors", b"0" * 1000, "does not match its sha256 .*nothing was kept"),
        ("model.safetensors", b"0" * 1_000_000, r"model\.safetensors has more than [\d,]+ bytes"),
        ("../../refs/main", b"../../../etc", "is damaged, it does not contain a revision"),
    ],
)
def test_hub_that_was_tampered_with(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    message: str,
) -> None:
    monkeypatch.setenv("EVENFIELD_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    revision = model_zoo.publish(folder, "me/copper", "memory://hub").partition("@")[2]
    if "main" in name:
        path = "/hub/me/copper/refs/main"
    else:
        path = f"/hub/me/copper/snapshots/{revision}/{name}"
    memory.pipe_file(path, content)
    with pytest.raises(EvenfieldError, match=message):
        model_zoo.load("me/copper", "memory://hub")

    # neither under its own name nor under a temporary one
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(path.read_bytes() == content for path in kept)
    assert not any("part" in path.name for path in kept)


def test_common_names_are_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert publishing.user_names() == set()
