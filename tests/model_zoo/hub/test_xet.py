"""Xet, the default transfer of the hub's client.

Each client runs in a process of its own, because the client reads its settings only when it is
imported. The other tests of the hub use LFS: that hf_xet can keep a store in a folder is not
documented, so this may stop to work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfield import model_zoo

from model_hub_server import Hub, serve
from small_models import sharded


pytest.importorskip("hf_xet", reason="comes with huggingface_hub on most machines, not on all")
from xet_store import XetStore


# What a client does: publish the folder named in its first argument, or load and predict.
TALK = """
import json, sys
from ase.build import bulk
from evenfield import model_zoo
from evenfield.model_zoo.hub import hugging_face

hugging_face.STORES = (*hugging_face.STORES, "local://")  # else refused
out = {}
if folder := sys.argv[1]:
    out["published"] = model_zoo.publish(folder, "alice/copper", tag="v1")
else:
    model = model_zoo.load("alice/copper@v1")
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model.calculator()
    out["reference"] = model.reference
    out["energy"] = atoms.get_potential_energy()
    out["forces"] = atoms.get_forces().tobytes().hex()
    out["stress"] = atoms.get_stress().tobytes().hex()
print(json.dumps(out))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # used when the server itself looks into its store
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "hub" / "cache"))
    (tmp_path / "hub" / "store").mkdir(parents=True)
    with serve() as hub:
        hub.xet = XetStore(tmp_path / "hub" / "store")
        yield hub


def client(
    hub: Hub, home: Path, *arguments: str, code: str = TALK
) -> subprocess.CompletedProcess[str]:
    """A Python that knows only where the hub is, who asks, and where its cache is."""
    # Settings of whoever runs the tests must not reach the client.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment["HF_ENDPOINT"] = hub.address
    environment["HF_TOKEN"] = "alice"
    environment["HF_HOME"] = str(home)
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip_over_xet_is_bit_identical(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """One commit; no weights over the hub's own addresses, neither up nor down."""
    shards = sharded(folder, tmp_path / "sharded")
    hub.xet.expect(*shards.glob("*.safetensors"))
    done = client(hub, tmp_path / "publisher", str(shards))
    assert done.returncode == 0, done.stderr[-2000:]

    repo = hub.repos["alice/copper"]
    published = json.loads(done.stdout)["published"]
    assert published == f"alice/copper@{repo.tags['v1']}"
    commits = [line for line in hub.log if "/commit/" in line]
    assert len(commits) == 1

    # The client falls back to LFS without a word, and then this file would test nothing new.
    assert any("xet-write-token" in line for line in hub.log)
    assert not hub.lfs
    tree = repo.commits[repo.main]
    for name, content in files_of(shards).items():
        assert tree[name] == content

    done = client(hub, tmp_path / "reader", "")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("reference") == f"alice/copper@{repo.main}"
    assert any("xet-read-token" in line for line in hub.log)
    assert not any(name.endswith(".safetensors") for name in hub.sent)

    (snapshot,) = (tmp_path / "reader").glob("hub/models--*/snapshots/*")
    assert files_of(snapshot) == files_of(shards)
    assert found == predicted(model_zoo.load(folder))


def predicted(model: model_zoo.LoadedModel) -> dict[str, object]:
    from ase.build import bulk

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model.calculator()
    return {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces().tobytes().hex(),
        "stress": atoms.get_stress().tobytes().hex(),
    }


def test_a_store_without_a_web_address_is_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Otherwise a hub could have hf_xet write anywhere on the disk of who downloads."""
    hub.xet.expect(folder / "model.safetensors")
    assert client(hub, tmp_path / "publisher", str(folder)).returncode == 0
    hub.cas_address = f"local://{tmp_path / 'outside'}"
    load = "from evenfield import model_zoo; model_zoo.load('alice/copper')"
    done = client(hub, tmp_path / "reader", code=load)
    assert done.returncode == 1

    # The address comes from the hub, so the message cuts it.
    message = f"alice/copper: the hub keeps its files at local://{tmp_path}"
    assert message[:80] in done.stderr.splitlines()[-1]
    assert not (tmp_path / "outside").exists()
