"""Which checkpoint a run goes on from and what it says about it; no two runs in one folder; any stage to any stage."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from evenfield.pretrain import run
from evenfield.pretrain.checkpoints.checkpoints import NoCheckpointError
from evenfield.pretrain.checkpoints.resume import _check_saved, sole_writer

from optimizer_steps import LEARNING_RATES, batch_of, engine_steps, new_engine, parts_of_steps


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
    assert "skipped .tmp-step-00000006 (a save that did not end)" in said
    assert "skipped step-00000004 (engine.safetensors has 100 of" in said
    assert "settings that changed: max_steps 4 -> 5" in said
    assert steps_of(saved.out) == [1, 2, 3, 4, 5]


def test_auto_starts_anew_where_nothing_is_whole_and_must_refuses(saved, capsys):
    shutil.rmtree(Path(saved.out) / "checkpoints" / "step-00000002")
    with pytest.raises(
        NoCheckpointError, match=r"no checkpoint to resume from; not whole: step-00000004 \(engine"
    ):
        run.pretrain(saved, "must", quiet=True)
    assert run.pretrain(saved, "auto") is not None
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "nothing to resume, starts anew; skipped step-00000004 (engine.safetensors has 100 of"
        in said
    )
    assert steps_of(saved.out) == [1, 2, 3, 4]
    assert not (Path(saved.out) / ".lock").exists()


def test_checkpoint_of_another_model_is_refused_before_anything_is_written(saved):
    other = saved.model_copy(update={"model": saved.model.model_copy(update={"channels": 4})})
    before = (Path(saved.out) / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"was saved with another model \(model\.channels 8 -> 4\): set it so, or"
    ):
        run.pretrain(other, "auto", quiet=True)
    assert (Path(saved.out) / "metrics.jsonl").read_bytes() == before


def test_checkpoint_of_another_optimizer_is_refused_before_anything_is_written(saved):
    other = saved.model_copy(
        update={"engine": saved.engine.model_copy(update={"optimizer": "adamw"})}
    )
    before = (Path(saved.out) / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"was saved by engine\.optimizer=soap, .*: set engine\.optimizer=soap, or"
    ):
        run.pretrain(other, "auto", quiet=True)
    assert (Path(saved.out) / "metrics.jsonl").read_bytes() == before


def test_checkpoint_that_says_nothing_of_angular_factors_has_them(run_config, tmp_path):
    config = run_config()
    saved = config.model_dump(mode="json")
    del saved["model"]["angular_factors"]
    with pytest.raises(
        ValueError, match=r"\(model\.angular_factors True -> False\): set it so, or start a new run"
    ):
        _check_saved(saved, config, tmp_path)
    model = config.model.model_copy(update={"angular_factors": True})
    _check_saved(saved, config.model_copy(update={"model": model}), tmp_path)


def test_two_processes_cannot_train_into_one_folder(run_config, tmp_path):
    with (
        sole_writer(tmp_path / "run"),
        pytest.raises(
            ValueError, match=r"run: another process trains into this folder: end it first"
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
