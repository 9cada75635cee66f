"""A run on two data sets: one model, E0 of both together, shares as stated, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.shards import BrokenDataSetError
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.training_stream import StreamError
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback

from added_callback import add_callback


@pytest.fixture(scope="module")
def folders(emt_file, tmp_path_factory) -> dict[str, Path]:
    """The EMT file in halves that share a level of theory and their elements, and whole."""
    folder = tmp_path_factory.mktemp("halves")
    frames = ase.io.read(emt_file, ":")
    config = ConvertConfig(
        columns={"level_of_theory": "level"}, licence="CC0-1.0", split_by="structure"
    )
    for name, part in {"even": frames[::2], "odd": frames[1::2], "both": frames}.items():
        ase.io.write(folder / f"{name}.extxyz", part)
        convert(folder / f"{name}.extxyz", folder / name, config)
    return {name: folder / name for name in ("even", "odd", "both")}


def test_reference_energies_are_fitted_to_all_sets(folders):
    """Both halves together hold every structure once, so their census is that of the whole."""
    mixed = Collection([str(folders["even"]), str(folders["odd"])])
    census = mixed.census()
    own = [read_census(folders[name]) for name in ("even", "odd")]
    for symbol, row in census["per_element"].items():
        parts = [c["per_element"].get(symbol, {"structures": {}})["structures"] for c in own]
        assert row["structures"] == {s: sum(p.get(s, 0) for p in parts) for s in row["structures"]}
    structures = [s for s in mixed.structures("train") if s.level_of_theory == "EMT"]
    e0 = census["levels_of_theory"]["EMT"]["e0"]
    own_e0 = own[0]["levels_of_theory"]["EMT"]["e0"]
    assert set(e0) >= set(own_e0) and e0 != own_e0
    residual = [
        (s.energy - sum(e0[symbol] for symbol in s.to_atoms().get_chemical_symbols())) / len(s)
        for s in structures
    ]
    assert abs(np.mean(residual)) < 0.05


class Stop(Callback):
    def on_step(self, trainer, report) -> None:
        if report.step == 4:
            trainer.stop.by = "a test"


def test_mixed_run_is_exact_under_resume_and_its_card_names_both_sets(
    folders, run_config, monkeypatch
):
    changes = {
        "data": [str(folders["even"]), str(folders["odd"])],
        "mixing": {"shares": {"even": 0.7, "odd": 0.3}},
    }
    model = run.pretrain(run_config("whole", **changes), quiet=True)
    with monkeypatch.context() as patch:
        add_callback(patch, Stop())
        assert run.pretrain(run_config("parts", **changes), quiet=True) is None
    checkpoints = Path(run_config("parts").out) / "checkpoints"
    newest = checkpoints / (checkpoints / "latest").read_text()
    state = json.loads((newest / "manifest.json").read_text())["states"][0]["stream"]
    (schedule,) = state["schedules"]
    sources = {"even": [0, pytest.approx(0.7)], "odd": [0, pytest.approx(0.3)]}
    assert schedule["first_window"] == 0 and schedule["sources"] == sources
    parts = run.pretrain(run_config("parts", **changes), resume="must", quiet=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (model, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    record = load(model).record
    assert [data.name for data in record.training_data] == ["even.extxyz", "odd.extxyz"]
    evaluation = json.loads((model / "evaluation.json").read_text())
    assert evaluation["num_structures"] == Collection(changes["data"]).num_structures("test")


def test_wrong_data_is_refused(folders, run_config, tmp_path):
    with pytest.raises(StreamError, match="data names no data set"):
        run.pretrain(run_config(data=[]), quiet=True)
    with pytest.raises(BrokenDataSetError, match="nothing: not a converted data set"):
        run.pretrain(run_config(data=[str(folders["even"]), str(tmp_path / "nothing")]), quiet=True)
    fault = r"mixing\.shares must give each of even, odd a share above 0"
    with pytest.raises(StreamError, match=fault):
        changes = {
            "data": [str(folders["even"]), str(folders["odd"])],
            "mixing": {"shares": {"even": 1.0}},
        }
        run.pretrain(run_config("third", **changes), quiet=True)
