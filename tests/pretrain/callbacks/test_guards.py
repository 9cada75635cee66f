"""A dead readout and vanished gradients are named; a jump of the loss sets the run back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from evenfield.cli import main
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback, StepReport
from evenfield.pretrain.callbacks.guards import CollapseGuard
from evenfield.pretrain.errors import TrainingError

from added_callback import KillReadout, add_callback
from optimizer_steps import new_potential


def test_dead_readout_ends_the_run_and_is_named(run_config, monkeypatch):
    add_callback(monkeypatch, KillReadout())
    with pytest.raises(
        TrainingError,
        match=r"step 40: the readout is dead: the inputs of its 16 features were below",
    ):
        run.pretrain(run_config(max_steps=60), quiet=True)


def test_readout_with_one_live_feature_is_not_dead(run_config, monkeypatch):
    class AllButOne(Callback):
        def on_step(self, trainer, report) -> None:
            trainer.engine.train_module.potential.readout.hidden.bias.data[1:] = -1e4

    add_callback(monkeypatch, AllButOne())
    assert run.pretrain(run_config(max_steps=42), quiet=True) is not None


def report(step: int, norm: float | None) -> StepReport:
    return StepReport(step, 0, 0.7, 1e-3, 1, 1, 0.0, 1.0, norm)


def test_vanished_gradients_are_named_and_small_or_skipped_ones_are_not():
    guard = CollapseGuard(new_potential())
    norms = [2.0] * 30 + [1e-5, None, 1e-7] * 30 + [1e-9] * 10 + [2.0] + [1e-9] * 19
    for step, norm in enumerate(norms, start=1):
        guard.on_guard(None, report(step, norm))
    with pytest.raises(
        TrainingError, match=r"loss has collapsed at 0\.7: for 20 steps the gradient norm was below"
    ):
        guard.on_guard(None, report(len(norms) + 1, 1e-9))


class Spoil(Callback):
    """Ruins the weights once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer, report) -> None:
        if report.step == self.step:
            trainer.engine.train_module.potential.readout.weight.data.mul_(1000.0)
            trainer.engine.train_module.potential.readout.element_weight.data.fill_(50.0)


@pytest.mark.parametrize("spike", [0.0, 5.0])
def test_jump_of_the_loss_sets_the_weights_back_if_wanted(run_config, monkeypatch, spike):
    """Without it the losses stay up; with it they are down again at once, and the data go on."""
    add_callback(monkeypatch, Spoil(34))
    config = run_config(max_steps=44, guards={"spike": spike}, checkpoints={"every": 10})
    run.pretrain(config, quiet=True)
    rows = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    ]
    losses = torch.tensor([row["loss"] for row in rows])
    before, after = losses[20:34].median(), losses[38:].median()
    notes = [(row["step"], row["note"]) for row in rows if "note" in row]
    assert [row["step"] for row in rows] == list(range(1, 45))
    assert [row["epoch"] for row in rows] == [k // 6 for k in range(44)]
    if spike:
        assert [step for step, _ in notes] == [37] and "set back to those of step 30" in notes[0][1]
        assert after < 2 * before
    else:
        assert notes == [] and after > 5 * before


def test_training_error_is_one_line_on_the_command_line(run_config, tmp_path, monkeypatch, capsys):
    """A learning rate at which everything explodes."""
    config = run_config(
        max_steps=200,
        optimizer={"learning_rate": 1e6, "clip_norm": 1e9},
        schedule={"warmup_steps": 0},
    )
    recipe = tmp_path / "recipe.json"
    recipe.write_text(config.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["evenfield", "pretrain", "--recipe", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "lower optimizer.learning_rate" in line


class Fail(Callback):
    closed = 0

    def on_step(self, trainer, report) -> None:
        raise OSError("at the first step")

    def close(self) -> None:
        Fail.closed += 1


def test_callbacks_are_closed_after_an_error_too(run_config, monkeypatch):
    add_callback(monkeypatch, Fail())
    with pytest.raises(OSError, match="at the first step"):
        run.pretrain(run_config(), quiet=True)
    assert Fail.closed == 1
    assert not (Path(run_config().out) / "hang-rank-0.txt").exists()
