"""Which checkpoint a run resumes from, with which changed settings; one run in a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.core.files import FileError
from evenfield.core.locks import LockedError
from evenfield.core.settings import Settings, load_settings
from evenfield.model_zoo.hub.load import load
from evenfield.model_zoo.package.folder import load_model
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.average import AverageConfig
from evenfield.pretrain.checkpoints.resume import changes, jumps
from evenfield.pretrain.checkpoints.run_folder import sole_writer
from evenfield.pretrain.config import RESUME_RULES, PretrainConfig, resume_rules
from evenfield.pretrain.errors import NoCheckpointError, ResumeError
from evenfield.pretrain.loop.trainer import Trainer

from optimizer_steps import (
    LEARNING_RATES,
    MODEL,
    batch_of,
    engine_steps,
    new_engine,
    parts_of_steps,
)


NOISE = ["loss.noise.EMT.energy=0.5", "loss.noise.EMT-scaled.energy=0.5"]
SAVED = {"max_steps": 4, "checkpoints": {"every": 2, "keep": 5}}


def steps_of(out: str) -> list[int]:
    return [
        json.loads(line)["step"] for line in (Path(out) / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def saved(run_config):
    """A run of 4 steps with checkpoints at 2 and 4, of which the newest is torn."""
    config = run_config(**SAVED)
    run.pretrain(config, quiet=True)
    os.truncate(Path(config.out) / "checkpoints" / "step-00000004" / "engine.safetensors", 100)
    return config


def test_auto_takes_the_newest_whole_one_and_says_what_it_skipped(saved, capsys):
    (Path(saved.out) / "checkpoints" / ".tmp-step-00000006").mkdir()
    longer = saved.model_copy(update={"max_steps": 5})
    assert run.pretrain(longer, "auto") is not None
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoints/step-00000002" in said
    assert "skipped .tmp-step-00000006 (unfinished save)" in said
    assert "skipped step-00000004 (engine.safetensors has 100 of" in said
    assert "settings that changed: max_steps 4 -> 5" in said
    # the saved step is still in the warm-up, which does not depend on max_steps
    assert "learning rate" not in said
    assert steps_of(saved.out) == [1, 2, 3, 4, 5]


def test_a_checkpoint_under_another_name_is_not_taken(saved, capsys):
    """The run went on at step 99, without a word."""
    checkpoints = Path(saved.out) / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000099")
    assert run.pretrain(saved.model_copy(update={"max_steps": 5}), "auto") is not None
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped step-00000099 (it is the checkpoint of step 2, under another name)" in said


def test_the_time_before_a_resume_counts(run_config, monkeypatch) -> None:
    """The card of a run of several parts stated the time of the last one."""
    config = run_config(**SAVED)
    monkeypatch.setattr(Trainer, "seconds", 1000.0)
    run.pretrain(config, quiet=True)
    monkeypatch.undo()
    out = run.pretrain(config.model_copy(update={"max_steps": 5}), "must", quiet=True)
    assert out is not None
    _, record = load_model(out)
    assert 1000 < record.training["seconds"] < 1500


def test_fewer_steps_than_were_made_are_refused(run_config) -> None:
    """The card of the model stated the lower number."""
    run.pretrain(run_config(**SAVED), quiet=True)
    with pytest.raises(ResumeError, match="max_steps=3 is less than the 4 steps") as told:
        run.pretrain(run_config(**SAVED | {"max_steps": 3}), "must", quiet=True)
    assert told.value.remedy == "set max_steps=4 for the model as it is now, or more to go on"
    assert run.pretrain(run_config(**SAVED), "must", quiet=True)


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_damaged_checkpoint_alone_is_refused_by_name(saved, resume):
    shutil.rmtree(Path(saved.out) / "checkpoints" / "step-00000002")
    for with_model in (True, False):
        before = {path: path.read_bytes() for path in Path(saved.out).rglob("*") if path.is_file()}
        with pytest.raises(
            NoCheckpointError,
            match=r"no whole checkpoint to resume from \(damaged: step-00000004 \(engine",
        ) as told:
            run.pretrain(saved, resume, quiet=True)
        assert "--overwrite in place of --resume" in told.value.remedy
        # a run from step 0 would have replaced the metrics, and pruned the damaged checkpoint
        assert before == {path: path.read_bytes() for path in before}
        if with_model:
            shutil.rmtree(Path(saved.out) / "model")


def test_auto_starts_anew_after_a_kill_in_the_first_save(saved, capsys):
    folder = Path(saved.out) / "checkpoints"
    shutil.rmtree(folder / "step-00000002")
    (folder / "step-00000004").rename(folder / ".tmp-step-00000004")
    shutil.rmtree(Path(saved.out) / "model")
    assert run.pretrain(saved, "auto") is not None
    said = " ".join(capsys.readouterr().out.split())
    assert "no checkpoint to resume from, starts a new run" in said
    assert "skipped .tmp-step-00000004 (unfinished save)" in said
    assert steps_of(saved.out) == [1, 2, 3, 4]
    assert not (Path(saved.out) / ".lock").exists()


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(saved, monkeypatch):
    iterdir = Path.iterdir

    def refuse(folder):
        if folder.name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FileError, match="checkpoints: Permission denied"):
        run.pretrain(saved, "auto", quiet=True)


# --- remedies that messages name: each is tried here


def test_remedy_without_a_whole_checkpoint(saved, run_config, tmp_path):
    shutil.rmtree(Path(saved.out) / "checkpoints" / "step-00000002")
    for resume in ("must", "auto"):
        with pytest.raises(EvenfieldError) as told:
            run.pretrain(saved, resume, quiet=True)
        assert "start a new run with --overwrite in place of --resume" in told.value.remedy
        assert "another folder" in told.value.remedy
    elsewhere = saved.model_copy(update={"out": str(tmp_path / "elsewhere"), "max_steps": 1})
    with pytest.raises(NoCheckpointError) as told:
        run.pretrain(elsewhere, "must", quiet=True)
    assert told.value.remedy == "start without --resume"
    assert run.pretrain(elsewhere, quiet=True) is not None
    assert run.pretrain(saved.model_copy(update={"max_steps": 1}), quiet=True, overwrite=True)
    assert steps_of(saved.out) == [1]


def test_remedy_for_a_folder_that_is_no_run(run_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(NoCheckpointError) as told:
        run.pretrain(run_config(out=str(tmp_path)), "must", quiet=True)
    assert told.value.remedy == "name the folder of the run with out"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["seed=3"], ["seed=4"]),
        (["model.channels=4"], ["model.channels=6"]),
        (["stream.weights.beta=0.5"], ["stream.weights.beta=0.25"]),
        ([], NOISE),
        (NOISE, []),
        ([], ["average.decay=0.9"]),
    ],
)
def test_remedy_for_a_setting_that_cannot_change(run_config, tmp_path, before, after):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(run_config(max_steps=1).model_dump_json())
    run.pretrain(load_settings(PretrainConfig, recipe, before), quiet=True)

    # one remedy after the other, as a user would
    words = list(after)
    tried = set()
    while True:
        try:
            assert run.pretrain(load_settings(PretrainConfig, recipe, words), "must", quiet=True)
            break
        except ResumeError as error:
            remedy = error.remedy.partition(",")[0]
        assert remedy not in tried
        tried.add(remedy)
        if remedy.startswith("leave "):
            key = remedy.removeprefix("leave ").removesuffix(" out")
            words = [word for word in words if not word.startswith(key)]
        else:
            words.append(remedy.removeprefix("set "))
    assert tried


# --- changed settings


def resume_rule(key: str) -> str:
    """The rule of a key, or of the section that it lies in."""
    rules = resume_rules()
    while key not in rules:
        key = key.rpartition(".")[0]
    return rules[key]


def test_every_setting_says_whether_a_resume_can_apply_it():
    keys = leaves(PretrainConfig)
    assert len(keys) > 50
    assert {resume_rule(key) for key in keys} == set(RESUME_RULES)
    # and no rule is left over from a setting that is gone
    assert all(any(f"{key}.".startswith(f"{rule}.") for key in keys) for rule in resume_rules())


def leaves(cls: type[Settings], prefix: str = "") -> list[str]:
    keys = []
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            keys += leaves(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stream": {"edge_budget": 1500, "window_blocks": 3, "weights": {"beta": 0.5}}},
            r"stream\.weights\.beta cannot change from 0\.0 to 0\.5 .*: it was fixed when the run "
            r"began: set stream\.weights\.beta=0\.0, or start a new run in another folder",
        ),
        (
            {"stream": {"edge_budget": 1500, "window_blocks": 4}},
            r"stream\.window_blocks cannot change from 3 to 4",
        ),
        ({"seed": 5}, r"seed cannot change from 0 to 5"),
        ({"optimizer": {"name": "adamw"}}, r"optimizer\.name cannot change from soap to adamw"),
        ({"model": MODEL | {"channels": 4}}, r"model\.channels cannot change from 8 to 4"),
        (
            {"loss": {"noise": {"EMT": {}, "EMT-scaled": {}}}},
            r"loss\.noise\.EMT\.energy cannot change from not set to 1\.0",
        ),
        (
            {"average": {"decay": 0.9}},
            r"average\.decay cannot change from 0\.0 to 0\.9 .*: it may be changed or switched off",
        ),
    ],
)
def test_setting_that_a_resume_cannot_apply_is_refused_before_anything_is_written(
    saved, run_config, change, message
):
    out = Path(saved.out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ResumeError, match=message):
        run.pretrain(run_config(**SAVED | change), "auto", quiet=True)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after == before


def test_settings_that_a_resume_applies_are_announced_and_recorded(saved, run_config, capsys):
    changed = {
        "max_steps": 5,
        "optimizer": {"learning_rate": 1e-3},
        "stream": {"edge_budget": 1000, "window_blocks": 3},
        "loss": {"forces": 2.0},
    }
    model = run.pretrain(run_config(**SAVED | changed), "auto")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "max_steps 4 -> 5",
        "optimizer.learning_rate 0.004 -> 0.001",
        "stream.edge_budget 1500 -> 1000",
        "loss.forces 5.0 -> 2.0",
    ):
        assert words in said
    recorded = load(model).record.training["config"]
    assert recorded["optimizer"]["learning_rate"] == 1e-3


def test_average_may_change_and_end_but_not_begin():
    rules = resume_rules()
    assert rules["average.decay"] == rules["loss.learn_noise"] == "not_from_off"


def test_moved_data_are_taken(saved, run_config, tmp_path):
    """What differs in their content is refused: test_changed_data.py."""
    moved = tmp_path / "moved"
    shutil.copytree(saved.data, moved)
    assert run.pretrain(run_config(**SAVED, data=str(moved)), "must", quiet=True) is not None


SCHEDULED = {
    "max_steps": 12,
    "schedule": {"warmup_steps": 0, "final_learning_rate": 0.0},
    "optimizer": {"learning_rate": 1.0},
    "loss": {"energy": 1.0, "final_energy": 100.0},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # cos^2(pi / 3) and cos^2(pi / 12); 100^(2/3) and 100^(1/6)
        (
            {"max_steps": 48},
            [
                "the learning rate of step 9 is 0.93 instead of 0.25",
                "the weight of the energy in step 9 is 2.15 instead of 21.5",
            ],
        ),
        (
            {"optimizer": {"learning_rate": 0.4}},
            ["the learning rate of step 9 is 0.1 instead of 0.25"],
        ),
        ({"checkpoints": {"every": 7}}, []),
    ],
)
def test_what_jumps_with_the_share_of_steps_done_is_told(run_config, change, expected):
    manifest = {"step": 8, "config": run_config(**SCHEDULED).saved()}
    notes = jumps(manifest, run_config(**SCHEDULED | change))
    assert len(notes) == len(expected)
    assert all(note.startswith(words) for note, words in zip(notes, expected, strict=True))


def test_setting_that_an_older_config_does_not_have_had_its_default(run_config):
    config = run_config()
    before = config.saved()
    del before["average"]
    assert changes(before, config.saved()) == []
    now = config.model_copy(update={"average": AverageConfig(decay=0.5)})
    assert [str(change) for change in changes(before, now.saved())] == ["average.decay 0.0 -> 0.5"]


# --- folders and stages


def test_two_processes_cannot_train_into_one_folder(run_config, tmp_path):
    with (
        sole_writer(tmp_path / "run"),
        pytest.raises(
            LockedError, match=r"run: another process trains into this folder: end it first"
        ),
    ):
        run.pretrain(run_config(), quiet=True)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_state_of_any_stage_goes_on_in_any_other(train_structures, before, after):
    """The steps after it are the same as without the change, and so is what would be saved next."""
    steps = [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures)[:4]]
    one, other = new_engine(before), new_engine(after)
    engine_steps(one, steps[:2])
    state = one.state()
    other.load_state(state)
    assert state.keys() == other.state().keys() and len(LEARNING_RATES) > 2
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in state.items())
    assert engine_steps(one, steps[2:]) == pytest.approx(engine_steps(other, steps[2:]), rel=1e-6)
