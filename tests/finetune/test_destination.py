"""What is at OUT of a fine-tuning: refused before any work, replaced only on success."""

from __future__ import annotations

import shlex
from pathlib import Path

import ase.io
import pytest
from matplotlib.figure import Figure

from evenfield import cli, model_zoo
from evenfield.cli.zoo_build import zoo_build
from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.core.figures.style import figure_png
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.structure import BadRecordError
from evenfield.finetune import run as runs
from evenfield.finetune import target
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.few_shot import curve as curves
from evenfield.finetune.few_shot.curve_plot import KIND
from evenfield.finetune.few_shot.results import FewShotCurve
from evenfield.finetune.run import finetune
from evenfield.finetune.safety.trust import attach_trust
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.target import open_target, place_of_data


@pytest.fixture
def data(emt_file, tmp_path) -> Path:
    """Five crystals of copper."""
    frames = [a for a in ase.io.read(emt_file, ":") if a.info["level"] == "EMT"]
    copper = [a for a in frames if set(a.symbols) == {"Cu"} and a.pbc.all()]
    path = tmp_path / "copper.extxyz"
    ase.io.write(path, copper[:5])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(line: str, monkeypatch, capsys) -> str:
    """The error of a command that must not get as far as to load a model."""

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(runs, "FineTuning", no_work)
    monkeypatch.setattr(curves, "_compute", no_work)
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code
    return " ".join(capsys.readouterr().err.split())


def test_finished_model_base_model_and_file_are_refused_before_any_work(
    model_folder, data, tmp_path, monkeypatch, capsys
):
    finished = tmp_path / "finished"
    model_zoo.save_model(finished, *model_zoo.load_model(model_folder))
    a_file = tmp_path / "notes.txt"
    a_file.write_text("mine")
    before = contents(tmp_path)
    command = f"evenfield finetune {model_folder} {data}"

    error = refused(f"{command} {finished}", monkeypatch, capsys)
    assert "already exists and holds a model" in error and "--overwrite" in error
    # what the command reads is not replaced by any option
    for option in ("", " --overwrite"):
        error = refused(f"{command} {model_folder}{option}", monkeypatch, capsys)
        assert "is read by this command" in error
        error = refused(f"{command} {a_file}{option}", monkeypatch, capsys)
        assert "a file" in error
    assert contents(tmp_path) == before


def test_another_data_set_at_out_data_is_refused_unless_overwritten(model, data, sets, tmp_path):
    work = tmp_path / "tuned-data"
    config = FineTuneConfig(strategy="refit")
    finetune(model, data, config, work=work)
    before = contents(work)

    # the same run again uses it again
    finetune(model, data, config, work=work)
    assert contents(work) == before

    # and with another setting, as an error about units may have asked for, it replaces its own
    renamed = config.model_copy(update={"source": SourceConfig(level_of_theory="PBE")})
    assert finetune(model, data, renamed, work=work).level_of_theory == "PBE"
    before = contents(work)

    other = tmp_path / "other.extxyz"
    ase.io.write(other, ase.io.read(data, ":")[:4])
    with pytest.raises(DestinationError, match=r"tuned-data: already exists and holds a data set"):
        finetune(model, other, config, work=work)
    assert contents(work) == before

    result = finetune(model, other, config, work=work, overwrite=True)
    assert len(result.structures) == 4 and contents(work) != before


def test_damaged_data_of_an_earlier_run_are_converted_again(model, data, tmp_path):
    work = tmp_path / "tuned-data"
    config = FineTuneConfig(strategy="refit")
    finetune(model, data, config, work=work)
    before = contents(work)
    shard = work / "train-00000.parquet"

    for damaged, overwrite in ((before[shard.name][:-100], False), (b"", True)):
        shard.write_bytes(damaged)
        finetune(model, data, config, work=work, overwrite=overwrite)
        assert contents(work) == before

    # a whole one is not converted again, and the same bytes may have another name
    written = shard.stat().st_mtime_ns
    finetune(model, data, config, work=work, overwrite=True)
    assert shard.stat().st_mtime_ns == written
    renamed = data.rename(tmp_path / "copper.renamed.extxyz")
    assert len(finetune(model, renamed, config, work=work).structures) == 5


def test_overwrite_of_out_replaces_no_data_set_of_a_user(model, data, tmp_path):
    work = tmp_path / "tuned-data"
    convert(str(data), work, ConvertConfig(level_of_theory="PBE", split_by="structure"))
    (work / "notes.txt").write_text("mine")
    before = contents(work)
    with pytest.raises(DestinationError, match=r"tuned-data: .*a data set.*choose another OUT"):
        finetune(model, data, FineTuneConfig(strategy="refit"), work=work, overwrite=True)
    assert contents(work) == before


def test_model_is_saved_over_another_one_only_with_overwrite(model, data, tmp_path):
    result = finetune(model, data, FineTuneConfig(strategy="refit"), work=tmp_path / "w")
    out = save_finetuned(result, model, tmp_path / "tuned")
    before = contents(out)
    with pytest.raises(DestinationError, match="already exists and holds a model"):
        save_finetuned(result, model, out)
    assert contents(out) == before
    save_finetuned(result, model, out, licence="MIT", overwrite=True)
    assert model_zoo.load(out).record.licence == "MIT"


def test_attached_files_are_not_replaced_without_a_word(model_folder, sets, tmp_path):
    folder = tmp_path / "model"
    model_zoo.save_model(folder, *model_zoo.load_model(model_folder))
    attach_trust(folder, sets["base"])
    before = contents(folder)
    with pytest.raises(DestinationError, match=r"already has posterior\.safetensors and probe"):
        attach_trust(folder, sets["base"])
    assert contents(folder) == before
    attach_trust(folder, sets["base"], overwrite=True)


def test_curve_refuses_a_folder_and_a_figure_of_something_else(
    model_folder, sets, tmp_path, monkeypatch, capsys
):
    command = f"evenfield finetune curve {model_folder} {sets['platinum']}"
    (tmp_path / "photo.png").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    cases = {
        "photo.json": "photo.png: already exists",
        "photo.png": "name a .json file",
        "folder": "is a folder",
    }
    for out, message in cases.items():
        assert message in refused(f"{command} {tmp_path / out}", monkeypatch, capsys)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"

    # also next to a curve, and with the option that replaces an earlier figure
    curve = FewShotCurve(target="platinum", force_rms=None, rows=[])
    (tmp_path / "photo.json").write_text(curve.to_json())
    for option in ("", " --overwrite"):
        line = f"{command} {tmp_path / 'photo.json'}{option}"
        assert "photo.png: already exists" in refused(line, monkeypatch, capsys)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"

    (tmp_path / "photo.png").write_bytes(figure_png(Figure(), kind=KIND))
    line = f"{command} {tmp_path / 'photo.json'} sizes=[4]"
    assert "--overwrite renames" in refused(line, monkeypatch, capsys)


def test_curve_replaces_no_other_json(model_folder, sets, tmp_path, monkeypatch, capsys):
    command = f"evenfield finetune curve {model_folder} {sets['platinum']}"
    census = sets["base"] / "census.json"
    before = census.read_bytes()
    for option in ("", " --overwrite"):
        assert "not a few-shot curve" in refused(f"{command} {census}{option}", monkeypatch, capsys)
    assert census.read_bytes() == before


def test_named_model_is_not_built_over_another_one(tmp_path):
    (tmp_path / "evenfield-m").mkdir()
    (tmp_path / "evenfield-m" / "manifest.json").write_text('{"format_version": 3, "sha256": ""}')
    with pytest.raises(DestinationError, match=r"holds a model .*--into"):
        zoo_build("evenfield-m", tmp_path, tmp_path / "work", None)


def test_remedies_of_a_conversion_are_spelt_as_settings_of_the_source(
    model, data, tmp_path, monkeypatch
):
    remedies = {
        "check columns.energy or remove it": True,
        "check source.columns.energy": False,
        "write it again": False,
    }
    for kind in (BadRecordError, EvenfieldError):
        for remedy, is_setting in remedies.items():

            def refuse(*_, kind=kind, remedy=remedy, **__):
                raise kind("is wrong", remedy=remedy)

            monkeypatch.setattr(target, "convert", refuse)
            with pytest.raises(kind) as told:
                finetune(model, data, FineTuneConfig(), work=tmp_path / "w")
            assert ("settings of the source begin with source." in told.value.remedy) == is_setting


def test_what_a_refused_file_leaves_at_out_data_is_replaced_with_overwrite(model, data, tmp_path):
    """The two remedies led into each other."""
    work = tmp_path / "tuned-data"
    bare = tmp_path / "bare.extxyz"
    frames = ase.io.read(data, ":")
    for atoms in frames:
        atoms.calc = None
    ase.io.write(bare, frames)
    with pytest.raises(EvenfieldError, match="has a label that was read"):
        finetune(model, bare, FineTuneConfig(strategy="refit"), work=work)
    assert work.is_dir()

    with pytest.raises(DestinationError, match=r"an unfinished data set .*--overwrite"):
        finetune(model, data, FineTuneConfig(strategy="refit"), work=work)
    config = FineTuneConfig(strategy="refit")
    assert finetune(model, data, config, work=work, overwrite=True).structures


def test_a_model_keeps_its_data_until_the_new_one_is_whole(model, data, tmp_path):
    work = tmp_path / "tuned-data"
    finetune(model, data, FineTuneConfig(strategy="refit"), work=work)
    (work / "notes.txt").write_text("mine")
    before = contents(work)
    other = tmp_path / "other.extxyz"
    ase.io.write(other, ase.io.read(data, ":")[:4])

    with pytest.raises(RuntimeError), place_of_data(work, replaces_model=True) as place:
        finetune(model, other, FineTuneConfig(strategy="refit"), work=place, overwrite=True)
        assert contents(work) == before and place != work
        raise RuntimeError("while the model is written")
    assert contents(work) == before and not place.exists()

    with place_of_data(work, replaces_model=True) as place:
        finetune(model, other, FineTuneConfig(strategy="refit"), work=place, overwrite=True)
    assert not place.exists()
    assert (work / "notes.txt").read_text() == "mine"
    assert len(open_target(work).train) == 4

    with place_of_data(work, replaces_model=False) as place:
        assert place == work
