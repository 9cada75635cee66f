"""A user's mistake ends in one line on stderr that says where and what to do, and exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evenfield.cli import main
from evenfield.core.seals import sealed
from evenfield.model_zoo import (
    BadModelError,
    ModelRecord,
    Potential,
    PotentialConfig,
    load,
    save_model,
)
from evenfield.model_zoo.package.manifest import write_manifest
from evenfield.pretrain.checkpoints.checkpoints import FORMAT


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Runs the console entry in this process; returns its one line of complaint."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return complaint(stop.value.code, capsys.readouterr().err)

    return run


def complaint(code: object, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert code == 1, stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


def frame(rows=("H 0 0 0",), properties="species:S:1:pos:R:3", info="energy=1") -> str:
    return f'{len(rows)}\nProperties={properties} {info} pbc="F F F"\n' + "".join(
        f"{row}\n" for row in rows
    )


GOOD = frame()
PBE = "level_of_theory=PBE"


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (GOOD, ["level=PBE"], "unknown key 'level' (known here: columns, "),
        (GOOD, [PBE, "columns.energy=E"], "columns.energy=E has no unit: add units.energy="),
        (
            GOOD,
            [PBE, "columns.energy=E", "units.energy=eV"],
            "mine.extxyz: no column 'E' for columns.energy; the file",
        ),
        (
            GOOD,
            [PBE, "columns.energy=energy", "units.energy=J"],
            "units.energy='J' is not known: use one of eV, meV",
        ),
        (
            GOOD,
            [PBE, "units.energy=Hartree"],
            "units.energy=Hartree belongs to no column: add columns.energy=",
        ),
        (GOOD, [], "mine.extxyz: record 0 states no level of theory: add level_of_theory=NAME"),
        (
            GOOD,
            [PBE, "columns=[E"],
            "'columns=[E': the value is not valid YAML: close its brackets",
        ),
        (GOOD, [PBE, "with_elements=[Xx]"], "with_elements: Xx: not an element symbol"),
        (
            GOOD + frame(["H 0 0 0 nan 0 0"], "species:S:1:pos:R:3:forces:R:3"),
            [PBE],
            "mine.extxyz: record 1 has NaN or infinite forces: remove the label or the record",
        ),
        (
            frame(["H 0 0 0", "H 0 0 0.1"]),
            [PBE],
            "at 0.100 A, closer than 0.3 A: check the length unit or remove the record",
        ),
        (
            frame(["119 0 0 0"], "Z:I:1:pos:R:3"),
            [PBE],
            "mine.extxyz: record 0 has atomic number 119, outside 1..118",
        ),
        (
            frame(["X 0 0 0"]),
            [PBE],
            "mine.extxyz: record 0 has atomic number 0, outside 1..118: correct the element",
        ),
        (
            frame(info="split=extra"),
            [PBE],
            "mine.extxyz: record 0 has split 'extra': use one of train, valid",
        ),
        (GOOD + GOOD[:-8], [PBE], "mine.extxyz: record 1 cannot be read"),
        (GOOD + "\n" + GOOD, [PBE], "mine.extxyz: record 0 is followed by a blank line"),
        (
            frame(["H 0 0 0"], "species:S:1:pos:R:99999999999999999999"),
            [PBE],
            "mine.extxyz: record 0 announces 99999999999999999999 columns",
        ),
        ("", [PBE], "mine.extxyz: contains no structures: write the file again"),
        ("not a structure\n", [PBE], "mine.extxyz: record 0 cannot be read"),
    ],
)
def test_conversion_refuses(refusal, tmp_path, text, words, expected):
    source = tmp_path / "mine.extxyz"
    source.write_text(text)
    assert expected in refusal("data", "convert", source, tmp_path / "out", *words)
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_conversion_of_a_missing_file(refusal, tmp_path):
    assert "nowhere.extxyz: no such file" in refusal(
        "data", "convert", tmp_path / "nowhere.extxyz", tmp_path, PBE
    )


def test_conversion_into_a_file(refusal, tmp_path):
    source = tmp_path / "mine.extxyz"
    source.write_text(GOOD)
    assert f"{source}: is a file: name a folder for the data set" in refusal(
        "data", "convert", source, source, PBE
    )
    assert source.read_text() == GOOD


def test_recipe_with_an_unknown_key(refusal, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {chanels: 8}\ndata: a\nout: b\n")
    line = refusal("pretrain", "--recipe", tmp_path / "recipe.yaml")
    known = "angular_factors, architecture, channels, charge_width, charges, correlation, cutoff"
    assert f"{tmp_path}/recipe.yaml: unknown key 'model.chanels' (known here: {known}" in line


def test_census_of_a_folder_that_is_no_data_set(refusal, tmp_path):
    assert f"{tmp_path}: not a converted data set" in refusal("data", "census", tmp_path)


# --- pretraining


@pytest.fixture
def broken_data(data_set, tmp_path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "data"))


def test_pretraining_on_a_truncated_shard(refusal, broken_data, tmp_path):
    shard = broken_data / "train-00000.parquet"
    os.truncate(shard, 1000)
    line = refusal("pretrain", f"data={broken_data}", f"out={tmp_path / 'run'}")
    assert f"{shard}: shard is truncated or changed (1000 of " in line
    assert "convert the source again" in line


def test_pretraining_on_a_missing_shard(refusal, broken_data, tmp_path):
    (broken_data / "valid-00000.parquet").unlink()
    line = refusal("pretrain", f"data={broken_data}", f"out={tmp_path / 'run'}")
    assert "valid-00000.parquet: shard is missing: convert the source again" in line


def test_pretraining_without_data(refusal, tmp_path):
    assert "key 'data' is missing" in refusal("pretrain", f"out={tmp_path}")


@pytest.mark.parametrize("torn", [False, True])
def test_resume_without_a_whole_checkpoint_in_a_real_process(data_set, tmp_path, torn):
    run = tmp_path / "run"
    expected = f"{run}/checkpoints: there is no whole checkpoint to resume from"
    if torn:
        checkpoint = run / "checkpoints" / "step-00000005"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights.pt").write_bytes(b"half")
        content = {"format": FORMAT, "step": 5, "files": {"weights.pt": {"bytes": 8}}}
        (checkpoint / "manifest.json").write_text(json.dumps(sealed(content)))
        expected += " (damaged: step-00000005 (weights.pt has 4 of 8 bytes))"
    line = real_process(
        ["pretrain", f"data={data_set}", f"out={run}", "model.channels=4", "--resume", "must"]
    )
    remedy = "start without --resume"
    if torn:
        remedy = "put a whole copy of the checkpoint back, or start a new run with --overwrite"
    assert f"{expected}: {remedy}" in line


def test_a_file_of_a_user_is_not_overwritten(refusal, tmp_path):
    mine = tmp_path / "vectors.csv"
    mine.write_text("mine")
    line = refusal("hub", "elements", "evenfield-s", "--csv", str(mine))
    assert "holds a file of 4 bytes, not vectors of" in line and "name another file" in line
    assert "--overwrite" not in line
    refusal("hub", "elements", "evenfield-s", "--csv", str(mine), "--overwrite")
    assert mine.read_text() == "mine"

    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "copper.extxyz").write_text("mine")
    assert "holds copper.extxyz, which evenfield did not write: name another folder" in refusal(
        "quickstart", str(folder)
    )
    assert (folder / "copper.extxyz").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["copper.extxyz"]


def real_process(words: list[str]) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evenfield.cli", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    return complaint(done.returncode, done.stderr)


# --- words and paths of other commands


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "convert", "FILE", "out", "--task", "3"], "--task 3: write K/N"),
        (["data", "generate", "FILE/x.extxyz", "num_structures=1"], "FILE is a file"),
        (["evaluate", "evenfield-s", "DATA", "FILE/out"], "FILE/out: cannot be created"),
        (
            ["simulate", "evenfield-s", "FILE", "out", "--level-of-theory", "EMT"],
            "FILE: cannot be read as a structure",
        ),
        (["check", "reach", "evenfield-s", "nowhere.cif"], "nowhere.cif: no such file"),
        (["finetune", "evenfield-s", "DATA", "out", "strategy=magic"], "(got 'magic')"),
        (["report", "out", "uniform"], "'uniform': name a run as name=folder"),
        (["quickstart", "FILE"], "FILE: already exists and holds a file"),
        (["zoo", "build", "nothing"], "nothing: no model of the zoo"),
    ],
)
def test_commands_refuse(refusal, data_set, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("not a folder and not a structure\n")
    line = refusal(*[str(data_set) if word == "DATA" else word for word in words])
    assert message in line


def test_generation_without_its_oracle(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    line = refusal("data", "generate", tmp_path / "x.extxyz", "num_structures=1", "workers=1")
    assert "tblite is not installed" in line and "pip install 'evenfield[demo]'" in line


# --- model folders


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory) -> Path:
    config = PotentialConfig(
        channels=4, l_max=1, num_layers=1, readout_size=4, levels_of_theory=["PBE"]
    )
    record = ModelRecord(name="tiny", elements={"PBE": ["H", "O"]})
    return save_model(tmp_path_factory.mktemp("zoo") / "tiny", Potential(config), record)


@pytest.fixture
def model(whole_model, tmp_path) -> Path:
    """A copy of a model folder, to break."""
    return Path(shutil.copytree(whole_model, tmp_path / "model"))


def sign(model: Path) -> None:
    """Make the manifest right again after a change, as whoever wrote the folder would."""
    names = json.loads((model / "manifest.json").read_text())["files"]
    (model / "manifest.json").write_text(
        write_manifest({name: (model / name).read_bytes() for name in names})
    )


def change_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(model)


def test_whole_model_loads(model):
    assert load(model).record.name == "tiny"
    sign(model)
    assert load(model).potential.config.levels_of_theory == ["PBE"]


def test_model_of_a_newer_format(refusal, model):
    change_config(model, format_version=999, architecture={"anything": 1})
    line = refusal("hub", "show", model)
    assert (
        f"{model}/config.json: format 999 is newer than this evenfield reads (3): upgrade evenfield"
        in line
    )
    with pytest.raises(BadModelError, match="upgrade evenfield"):
        load(model)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "README.md", "evaluation.json"]
)
def test_tampered_file(refusal, model, name):
    content = bytearray((model / name).read_bytes())
    content[-1] ^= 1
    (model / name).write_bytes(content)
    line = refusal("hub", "show", model)
    assert (
        f"{model}/{name}: content does not match its sha256 in manifest.json: fetch the model again"
        in line
    )


def test_missing_file(refusal, model):
    (model / "model.safetensors").unlink()
    assert (
        f"{model}/model.safetensors: file is missing: fetch the model again, or save it again"
        in refusal("hub", "show", model)
    )


def test_missing_tensor_is_not_made_up(refusal, model):
    weights = load_file(model / "model.safetensors")
    del weights["readout.weight"]
    save_file(weights, model / "model.safetensors")
    sign(model)
    line = refusal("hub", "show", model)
    assert f"{model}/model.safetensors: does not fit config.json: missing readout.weight" in line


def test_tensor_of_another_shape(refusal, model):
    weights = load_file(model / "model.safetensors")
    weights["e0"] = torch.zeros(1, 50, dtype=torch.float64)
    save_file(weights, model / "model.safetensors")
    sign(model)
    assert "does not fit config.json: e0 is (1, 50) torch.float64, not (1, 119)" in refusal(
        "hub", "show", model
    )


def test_manifest_that_leaves_out_the_weights(refusal, model):
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["files"]["model.safetensors"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert (
        "manifest.json: does not list the weights completely and exactly once (listed: none): "
        "fetch the model again, or save it again" in refusal("hub", "show", model)
    )


def test_folder_that_is_no_model(refusal, tmp_path):
    assert f"{tmp_path}: not a model folder (no manifest.json)" in refusal("hub", "show", tmp_path)


def test_reference_that_is_neither_folder_nor_name(refusal, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere}: no such folder" in refusal("hub", "show", nowhere)
    expected = "neither a folder nor a reference owner/name[@revision]"
    assert expected in refusal("hub", "show", "nowhere")


def test_name_that_the_folder_hub_does_not_hold(refusal, tmp_path):
    line = refusal("hub", "show", "me/nothing", "--folder-hub", tmp_path)
    assert f"me/nothing: no such model in the folder hub {tmp_path}" in line
