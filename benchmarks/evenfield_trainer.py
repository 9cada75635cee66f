"""Our own trainer for a number of processor seconds or steps: settings in, errors out.

    python evenfield_trainer.py SETTINGS.json

SETTINGS has `seconds` and a pretraining config. The end of the schedule follows from the processor
time of the steps so far and is put right every so often. With the files `test` and `inference`, the
model is tested and timed as trainer_protocol.py does with all packages. Prints one line of JSON, as
nequip_trainer.py does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trainer_protocol import measure, versions

from evenfield.model_zoo import load
from evenfield.pretrain import run
from evenfield.pretrain.callbacks.callback import Callback, Loop, StepReport
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.loop.trainer import Trainer


WARM_UP = 100  # steps that may compile and fill queues
EVERY = 20  # steps between corrections of the schedule's end
MOST_STEPS = 10**6


class Clock(Callback):
    """Processor seconds of all steps; the first, which may compile, count as the mean of the rest.

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
        assert self.budget
        loop.max_steps = max(self.steps, round(self.steps * self.budget / self.seconds))
        if self.seconds >= self.budget:
            loop.stop.by = "the clock"  # one more step is under way


def train(
    settings: dict[str, Any], *, steps: int | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """One run of so many steps or processor seconds: test errors, steps, structures, seconds.

    Where the settings name a file `inference`, also the time of inference.
    """
    clock = Clock(seconds)
    fit = Trainer.fit
    most = steps or MOST_STEPS

    def timed(trainer: Trainer) -> bool:
        trainer.callbacks.append(clock)
        return fit(trainer)

    with tempfile.TemporaryDirectory() as folder:
        out = {"out": f"{folder}/run", "max_steps": most, "evaluate_every": most + 1}
        config = PretrainConfig.model_validate(
            settings["config"] | out | {"checkpoints": {"every": most + 1}}
        )
        Trainer.fit = timed  # type: ignore[method-assign]
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
        kept = {key: errors[key] for key in ("energy_mae_per_atom", "force_mae")}
        if "inference" in settings:
            # without a margin its list of neighbours is made anew in every call, as the peers' are
            calculator = load(Path(config.out) / "model").calculator(
                skin=0.0, compiled=config.compute.compiled, warn_outside=False
            )
            kept |= measure(calculator, settings)
            kept["versions"] = versions("evenfield", "torch")
    return kept | {"seconds": clock.seconds, "steps": clock.steps, "structures": clock.structures}


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(train(settings, seconds=settings["seconds"])), file=answer, flush=True)


if __name__ == "__main__":
    main()
