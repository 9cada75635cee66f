"""Our own trainer for a number of processor seconds or steps: settings in, errors out.

    python evenfield_trainer.py SETTINGS.json

SETTINGS has `seconds`, and the `config` of a pretraining. The length of the schedule is estimated
from the processor time of the steps so far, and corrected every EVERY steps. If the settings name
the files `test` and `inference`, the model is tested and timed in the same way as those of all
packages (trainer_protocol.py). Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trainer_protocol import Answer, measure, read_settings, versions

from evenfield.model_zoo import load
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback, Loop, StepReport
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.loop.trainer import Trainer


WARM_UP = 100  # steps that may compile and fill queues
EVERY = 20  # steps between corrections of the schedule's end
MOST_STEPS = 10**6


class ClockCallback(Callback):
    """Counts the processor seconds of all steps; the first, untypical ones count as the mean.

    With a `budget` of seconds it moves the end of the run to where they are spent.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.started = 0.0
        self.seconds = 0.0
        self.structures = 0
        self.steps = 0

    def on_step(self, loop: Loop, report: StepReport) -> None:
        self.structures = self.structures + report.structures
        self.steps = report.step
        if report.step == WARM_UP:
            self.started = time.process_time()
        elif report.step > WARM_UP:
            self.seconds = (
                (time.process_time() - self.started) * report.step / (report.step - WARM_UP)
            )
            if self.budget and report.step % EVERY == 0:
                self._move_end(loop)

    def _move_end(self, loop: Loop) -> None:
        """Let the run end when, at the present speed, the budget is spent."""
        assert self.budget
        loop.max_steps = max(self.steps, round(self.steps * self.budget / self.seconds))
        if self.seconds >= self.budget:
            loop.stop.by = "the clock"  # one more step is under way


def train(
    settings: dict[str, Any], *, steps: int | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """One run of so many steps or processor seconds: test errors, steps, structures, seconds.

    If the settings name a file `inference`, also the time of inference.
    """
    clock = ClockCallback(seconds)
    fit = Trainer.fit
    most_steps = steps or MOST_STEPS

    def fit_with_clock(trainer: Trainer) -> bool:
        trainer.callbacks.append(clock)
        return fit(trainer)

    with tempfile.TemporaryDirectory() as folder:
        of_this_run = {
            "out": f"{folder}/run",
            "max_steps": most_steps,
            # neither validations nor checkpoints during the run
            "evaluate_every": most_steps + 1,
            "checkpoints": {"every": most_steps + 1},
        }
        config = PretrainConfig.model_validate(settings["config"] | of_this_run)
        Trainer.fit = fit_with_clock  # type: ignore[method-assign]
        try:
            run.pretrain(config, quiet=True)
        finally:
            Trainer.fit = fit  # type: ignore[method-assign]
        if not clock.seconds:
            sys.exit(
                f"the clock starts after {WARM_UP} steps, of which there were {clock.steps}: "
                "ask for more"
            )
        errors = json.loads((Path(config.out) / "evaluation.json").read_text())
        row = {key: errors[key] for key in ("energy_mae_per_atom", "force_mae")}
        if "inference" in settings:
            # without a margin it makes its neighbour list in every call, as the peers do
            calculator = load(Path(config.out) / "model").calculator(
                skin=0.0, compiled=config.compute.compiled, warn_outside=False
            )
            row |= measure(calculator, settings)
            row["versions"] = versions("evenfield", "torch")
    return row | {"seconds": clock.seconds, "steps": clock.steps, "structures": clock.structures}


def main() -> None:
    answer = Answer()  # DeepSpeed prints
    torch.set_num_threads(1)
    settings = read_settings()
    answer.give(train(settings, seconds=settings["seconds"]))


if __name__ == "__main__":
    main()
