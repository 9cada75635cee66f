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
    out |= {"reference": model.reference, "energy": atoms.get_potential_energy()}
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
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": "alice", "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_round_trip_over_xet_is_bit_identical(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """One commit; no weights over the hub's own addresses, neither up nor down."""
    shards = sharded(folder, tmp_path / "sharded")
    hub.xet.expect(*shards.glob("*.safetensors"))
    done = client(hub, tmp_path / "publisher", str(shards))
    assert done.returncode == 0, done.stderr[-2000:]
    repo = hub.repos["alice/copper"]
    assert json.loads(done.stdout)["published"] == f"alice/copper@{repo.tags['v1']}"
    assert len([line for line in hub.log if "/commit/" in line]) == 1
    assert any("xet-write-token" in line for line in hub.log) and not hub.lfs
    tree = repo.commits[repo.main]
    assert all(tree[path.name] == path.read_bytes() for path in shards.iterdir())

    done = client(hub, tmp_path / "reader", "")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("reference") == f"alice/copper@{repo.main}"
    assert any("xet-read-token" in line for line in hub.log)
    assert not any(name.endswith(".safetensors") for name in hub.sent)
    fetched = {
        path.name: path.read_bytes()
        for path in (tmp_path / "reader").glob("hub/models--*/snapshots/*/*")
    }
    assert fetched == {path.name: path.read_bytes() for path in shards.iterdir()}
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
    done = client(
        hub,
        tmp_path / "reader",
        code="from evenfield import model_zoo; model_zoo.load('alice/copper')",
    )
    assert done.returncode == 1
    assert (
        f"alice/copper: the hub keeps its files at local://{tmp_path}"[:80]
        in done.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "outside").exists()
