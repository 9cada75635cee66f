"""A training ends with finite weights that have learned, or with an error and without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evenfield.model_zoo.evaluation.summary import InfiniteErrorsError
from evenfield.model_zoo.package.weights import UnusableWeightsError
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback
from evenfield.pretrain.errors import TrainingError
from evenfield.pretrain.loop.schedule import Schedule
from evenfield.pretrain.loop.trainer import Trainer

from added_callback import add_callback
from optimizer_steps import FixedStream, batch_of, new_engine, with_coinciding_atoms


def trainer_on(batches: list, max_steps: int) -> Trainer:
    return Trainer(new_engine(0), FixedStream(batches), Schedule(4e-3), max_steps, [])


def files_of(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_run_whose_weights_explode_leaves_no_model_and_no_checkpoint(run_config, decay):
    # one step with it is enough, and max_steps ends the run before ten steps in a row were skipped
    settings = {"optimizer": {"learning_rate": 1e30}, "average": {"decay": decay}}
    config = run_config(max_steps=4, checkpoints={"every": 1}, **settings)
    with pytest.raises(TrainingError, match=r"step 1: .*no longer finite.*learning_rate"):
        run.pretrain(config, quiet=True)
    assert files_of(Path(config.out)) & {"model", "evaluation.json", "predictions.npz"} == set()
    assert not list(Path(config.out).glob("checkpoints/step-*"))


def test_an_explosion_after_the_last_save_is_an_error_too(run_config):
    config = run_config(max_steps=4, optimizer={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"step 4: .*no longer finite"):
        run.pretrain(config, quiet=True)
    assert files_of(Path(config.out)) & {"model", "evaluation.json", "predictions.npz"} == set()


class PoisonBeforeASave(Callback):
    def on_step(self, trainer, report) -> None:
        if report.step == 3:
            trainer.engine.train_module.potential.readout.weight.data[0, 0] = torch.nan


def test_checkpoints_that_are_whole_are_not_pruned_for_one_that_is_not(run_config, monkeypatch):
    add_callback(monkeypatch, PoisonBeforeASave())
    config = run_config(max_steps=8, checkpoints={"every": 1, "keep": 1})
    with pytest.raises(TrainingError, match="step 3"):
        run.pretrain(config, quiet=True)
    assert files_of(Path(config.out) / "checkpoints") == {"step-00000002", "latest"}


def test_a_run_that_took_no_step_says_what_to_change(train_structures):
    bad = with_coinciding_atoms(batch_of(train_structures[3:5]))
    trainer = trainer_on([bad], 4)
    with pytest.raises(TrainingError, match=r"nothing was learned.*in any of 4 steps.*precision"):
        trainer.fit()

    # resumed from a checkpoint at its end, it still has learned nothing
    resumed = trainer_on([bad], 4)
    resumed.step = 4
    saved = {"callbacks": {}, "num_skipped": trainer.num_skipped}
    resumed.load_state([saved], same_data=False)
    with pytest.raises(TrainingError, match="nothing was learned"):
        resumed.fit()


def test_one_good_step_is_enough(train_structures):
    bad = with_coinciding_atoms(batch_of(train_structures[3:5]))
    assert trainer_on([batch_of(train_structures[:3]), bad], 2).fit()


def test_a_model_that_predicts_no_finite_forces_is_no_result(run_config):
    # weights that are finite, and overflow where they are multiplied with each other
    config = run_config(max_steps=3, optimizer={"learning_rate": 1e6})
    with pytest.raises((TrainingError, InfiniteErrorsError, UnusableWeightsError)):
        run.pretrain(config, quiet=True)
    assert files_of(Path(config.out)) & {"model", "evaluation.json", "predictions.npz"} == set()
