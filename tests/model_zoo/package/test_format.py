"""The format of model folders: old formats, shards, attachments, saving over another model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo.network.architectures import ARCHITECTURES
from evenfield.model_zoo.network.interface import NetworkConfig
from evenfield.model_zoo.package.manifest import FORMAT_VERSION, read_manifest
from evenfield.model_zoo.package.upgrade import UPGRADES
from evenfield.model_zoo.potential.config import PotentialConfig


OLD = Path(__file__).parent / "old_formats"


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_models_of_every_format_predict_what_they_did(version: int) -> None:
    model = model_zoo.load(OLD / str(version))
    text = (OLD / f"{version}.json").read_text()
    expected = json.loads(text)

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model.calculator(level_of_theory="EMT")
    energy = atoms.get_potential_energy()
    forces = atoms.get_forces()

    assert energy == pytest.approx(expected["energy"], abs=1e-5)
    assert np.allclose(forces, expected["forces"], atol=1e-5)
    # forces of zero would agree whatever the model does
    assert np.abs(expected["forces"]).max() > 0.01
    assert model.record.elements == {"PBE": ["Cu"], "EMT": ["Cu", "Au"]}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_later_setting_is_stored_only_where_it_was_changed(architecture: str) -> None:
    """Otherwise the digest of every older model would change, and void its records."""
    plain = PotentialConfig(architecture=architecture)
    stored = plain.model_dump(mode="json")
    assert not set(stored) & set(NetworkConfig.ADDED_LATER)
    again = PotentialConfig.from_stored(stored)
    assert again == plain
    # the values of all models that were stored before these settings existed
    assert (again.network.silent_below, again.network.whole_from) == (0.3, 0.5)

    wider = PotentialConfig(architecture=architecture, silent_below=0.35, whole_from=0.5)
    stored = wider.model_dump(mode="json")
    assert stored["silent_below"] == 0.35
    assert "whole_from" not in stored
    assert PotentialConfig.from_stored(stored) == wider


def test_the_chain_has_no_gap() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT_VERSION))


def test_shards_hold_the_same_model(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    potential, record = model_zoo.load_model(folder)
    model_zoo.save_model(sharded, potential, record, max_shard_bytes=20_000)

    names = read_manifest(sharded).weights
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"

    again, _ = model_zoo.load_model(sharded)
    loaded = again.state_dict()
    for name, tensor in potential.state_dict().items():
        assert torch.equal(tensor, loaded[name]), name


def test_saving_over_another_model_leaves_nothing_of_it(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    model_zoo.save_model(folder, potential, record, max_shard_bytes=20_000)
    assert not (folder / "model.safetensors").exists()

    # and back from shards to one file
    model_zoo.save_model(folder, potential, record)
    names = [path.name for path in folder.glob("model*.safetensors")]
    assert names == ["model.safetensors"]
    assert model_zoo.load(folder).record == record


def test_attachments_are_listed_verified_and_handed_out(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    files = {"probe.extxyz": b"1\n\nCu 0 0 0\n", "posterior.safetensors": b"\0\1\2"}
    model_zoo.save_model(folder, potential, record, attachments=files)
    assert model_zoo.load(folder).attachments == files
    card = (folder / "README.md").read_text()
    assert "`probe.extxyz`" in card

    # of the same size, so that only the hash can tell
    (folder / "probe.extxyz").write_bytes(b"1\n\nAu 0 0 0\n")
    message = r"probe\.extxyz: content does not match its sha256"
    with pytest.raises(model_zoo.BadModelError, match=message):
        model_zoo.load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "../probe.extxyz", "run.py", "weights.pkl"]
)
def test_attachment_with_an_impossible_name(folder: Path, name: str) -> None:
    potential, record = model_zoo.load_model(folder)
    with pytest.raises(EvenfieldError, match="not a possible name for an attachment"):
        model_zoo.save_model(folder, potential, record, attachments={name: b""})
    # refused before anything was written
    assert model_zoo.load(folder).record == record


def test_paths_of_the_record_are_cut(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    config = {"init": "/home/somebody/runs/model", "other": ["file:///data/set", "a/b"]}
    with_paths = record.model_copy(update={"training": {"config": config}})
    model_zoo.save_model(folder, potential, with_paths)

    stored = model_zoo.load(folder).record.training
    # a relative path says nothing about a machine, and is kept
    assert stored == {"config": {"init": "model", "other": ["set", "a/b"]}}
