"""The loop: schedule, steps that are skipped, signals."""

from __future__ import annotations

import json
import os
import signal
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback
from evenfield.pretrain.errors import TrainingError
from evenfield.pretrain.loop import train_module
from evenfield.pretrain.loop import trainer as train
from evenfield.pretrain.loop.loss import LossConfig
from evenfield.pretrain.loop.schedule import Schedule, ScheduleConfig
from evenfield.pretrain.loop.trainer import Trainer

from added_callback import add_callback
from optimizer_steps import (
    FixedStream,
    batch_of,
    largest_difference,
    new_engine,
    weights,
    with_coinciding_atoms,
)


# --- schedule


def test_learning_rate_starts_low_peaks_after_warm_up_and_ends_at_the_final_one():
    schedule = Schedule(1e-2, ScheduleConfig(final_learning_rate=1e-4, warmup_steps=10))
    rates = [schedule.at(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == rates[10] == pytest.approx(1e-2)
    assert rates[55] == pytest.approx((1e-2 + 1e-4) / 2)  # the cosine's middle
    assert rates[100] == pytest.approx(1e-4)
    assert rates[99] < 1.01e-4 + 1e-5
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_schedule_without_warm_up_and_shorter_than_its_warm_up():
    assert Schedule(1e-2, ScheduleConfig(warmup_steps=0)).at(0, 10) == pytest.approx(1e-2)
    short = Schedule(1e-2, ScheduleConfig(warmup_steps=50))
    assert [short.at(step, 5) for step in (0, 4)] == pytest.approx([2e-4, 1e-3])
    assert short.at(50, 50) == pytest.approx(1e-2)


def test_stable_stretch_does_not_depend_on_the_length_of_the_run():
    config = ScheduleConfig(final_learning_rate=1e-4, warmup_steps=10, decay_share=0.25)
    schedule = Schedule(1e-2, config)

    short = [schedule.at(step, 100) for step in range(101)]
    long = [schedule.at(step, 1000) for step in range(1001)]

    assert short[:75] == long[:75]
    assert short[10:75] == [1e-2] * 65
    assert long[10:750] == [1e-2] * 740
    assert all(a > b for a, b in pairwise(short[75:]))
    assert short[100] == long[1000] == pytest.approx(1e-4)


def test_weight_of_the_energy_rises_from_step_to_step(good, monkeypatch):
    seen, known = [], train_module.weighted_loss

    def watched(prediction, batch, counts, config, noise):
        seen.append(config)
        return known(prediction, batch, counts, config, noise)

    monkeypatch.setattr(train_module, "weighted_loss", watched)
    trainer = trainer_on([good] * 4, 4)
    loss = LossConfig(energy=2.0, final_energy=32.0)
    trainer.engine.train_module.loss = loss
    assert trainer.fit()
    assert [config.energy for config in seen] == pytest.approx([2, 4, 8, 16])
    assert {(config.forces, config.stress) for config in seen} == {(loss.forces, loss.stress)}


# --- steps that are not taken


class Record(Callback):
    """What the trainer reported, and the weights after every step."""

    def __init__(self) -> None:
        self.reports, self.states, self.ended = [], [], 0

    def on_step(self, trainer, report) -> None:
        self.reports.append(report)
        self.states.append(weights(trainer.engine.train_module.potential))

    def on_end(self, trainer) -> None:
        self.ended += 1


@pytest.fixture
def good(train_structures):
    return batch_of(train_structures[:3])


@pytest.fixture
def bad(train_structures):
    return with_coinciding_atoms(batch_of(train_structures[3:5]))


def trainer_on(batches: list, max_steps: int, *callbacks: Callback, **settings: int) -> Trainer:
    stream = FixedStream(batches)
    return Trainer(new_engine(0), stream, Schedule(4e-3), max_steps, list(callbacks), **settings)


def test_bad_step_is_skipped_named_and_survived(good, bad, train_structures):
    record = Record()
    assert trainer_on([good, bad, good], 3, record).fit()
    before, skipped, after = record.states
    assert largest_difference(before, skipped) == 0 < largest_difference(skipped, after)
    names = [s.structure_id for s in train_structures[3:5]]
    assert [report.bad_structures for report in record.reports] == [[], names, []]
    assert all(p.isfinite().all() for p in after.values())
    assert [report.step for report in record.reports] == [1, 2, 3] and record.ended == 1


def test_bad_batch_spoils_the_batches_of_its_step_only(good, bad):
    record = Record()
    trainer_on([good, bad, good, good], 2, record, accumulation=2).fit()
    assert [len(report.bad_structures) for report in record.reports] == [5, 0]


def test_too_many_bad_steps_in_a_row_are_an_error(good, bad, monkeypatch):
    monkeypatch.setattr(train, "MAX_BAD_STEPS", 2)
    assert trainer_on([good, bad], 6).fit()  # never two in a row
    with pytest.raises(
        TrainingError,
        match=r"not finite in 2 steps in a row, last with .+: lower optimizer\.learning_rate",
    ):
        trainer_on([good, bad, bad], 6).fit()


class Poison(Callback):
    def on_step(self, trainer, report) -> None:
        if report.step == 3:
            trainer.engine.train_module.potential.readout.weight.data[0, 0] = torch.nan


def test_exploded_weights_end_the_run_and_the_metrics_say_where(run_config, monkeypatch):
    add_callback(monkeypatch, Poison())
    config = run_config(max_steps=30)
    with pytest.raises(TrainingError, match="not finite in 10 steps in a row"):
        run.pretrain(config, quiet=True)
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    rows = [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        for line in lines
    ]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [bool(row.get("bad_structures")) for row in rows] == [False] * 3 + [True] * 9
    assert rows[2]["loss"] > 0 and rows[3]["loss"] is None


# --- epochs and ends


def test_report_adds_up_the_batches_of_a_step(good, train_structures):
    record = Record()
    other = batch_of(train_structures[5:7])
    trainer_on([good, other, good], 4, record, accumulation=2).fit()
    structures = [report.structures for report in record.reports]
    assert structures == [5, 6, 5, 5]  # a step may reach over the end of an epoch
    assert [report.epoch for report in record.reports] == [0, 0, 1, 2]
    assert record.reports[0].edges == good.num_edges + other.num_edges


def test_finished_run_takes_no_further_step(good):
    record = Record()
    trainer = trainer_on([good], 3, record)
    for start in (3, 5):
        trainer.step = start
        assert trainer.fit()
        assert trainer.step == start
    assert record.reports == [] and record.ended == 2


# --- signals


class Kill(Callback):
    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step(self, trainer, report) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_stops_at_the_next_step_and_handlers_come_back(good, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    record = Record()
    assert not trainer_on([good], 9, Kill(2, number), record).fit()
    assert [report.step for report in record.reports] == [1, 2, 3]
    assert record.ended == 1
    assert {n: signal.getsignal(n) for n in before} == before


def test_signal_in_the_last_step_does_not_make_a_finished_run_unfinished(good):
    assert trainer_on([good], 3, Kill(3)).fit()


def test_trains_in_a_thread_too(good):
    done = []
    thread = threading.Thread(target=lambda: done.append(trainer_on([good], 2).fit()))
    thread.start()
    thread.join()
    assert done == [True]


def test_sigterm_saves_and_resume_ends_where_the_whole_run_does(run_config, monkeypatch, capsys):
    whole = run.pretrain(run_config("whole"), quiet=True)
    with monkeypatch.context() as patch:
        add_callback(patch, Kill(4))
        assert run.pretrain(run_config("stopped")) is None
    assert "stopped at step 5 by SIGTERM, saved; continue with" in capsys.readouterr().out
    out = Path(run_config("stopped").out)
    assert (out / "checkpoints" / "latest").read_text() == "step-00000005"
    assert not (out / "model").exists()
    resumed = run.pretrain(run_config("stopped"), resume="must", quiet=True)
    assert (resumed / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()
