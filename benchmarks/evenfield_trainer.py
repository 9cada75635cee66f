"""Our own trainer for about a number of processor seconds: settings in, errors out; see equal_seconds.py.

    python evenfield_trainer.py SETTINGS.json

SETTINGS has `seconds` and a pretraining config. The number of steps comes from the processor time of a step, measured
in a run of its own. Prints one line of JSON, as nequip_trainer.py does.
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

from evenfield.pretrain import run
from evenfield.pretrain.callbacks import Callback
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.train import StepReport, Trainer


WARM_UP, PROBE = 20, 60  # steps that are not counted, and steps that are, to know the time of one


class Clock(Callback):
    """Processor seconds of the steps after the first `warm_up`."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.started, self.seconds = warm_up, 0.0, 0.0

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.warm_up:
            self.started = time.process_time()
        self.seconds = time.process_time() - self.started


def train(settings: dict[str, Any], steps: int, warm_up: int) -> dict[str, Any]:
    """One run: test errors, steps, and processor seconds of those after the first."""
    clock, fit = Clock(warm_up), Trainer.fit

    def timed(trainer: Trainer) -> bool:
        trainer.callbacks.insert(0, clock)
        return fit(trainer)

    with tempfile.TemporaryDirectory() as folder:
        out = {"out": f"{folder}/run", "max_steps": steps, "evaluate_every": steps + 1}
        config = PretrainConfig.model_validate(settings["config"] | out | {"checkpoints": {"every": steps + 1}})
        Trainer.fit = timed  # type: ignore[method-assign]
        try:
            run.pretrain(config, quiet=True)
        finally:
            Trainer.fit = fit  # type: ignore[method-assign]
        errors = json.loads((Path(config.out) / "evaluation.json").read_text())
    kept = {key: errors[key] for key in ("energy_mae_per_atom", "force_mae")}
    return kept | {"seconds": clock.seconds, "steps": steps}


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    probe = train(settings, WARM_UP + PROBE, WARM_UP)
    steps = max(WARM_UP, round(settings["seconds"] * PROBE / probe["seconds"]))
    print(json.dumps(train(settings, steps, 1)), file=answer, flush=True)


if __name__ == "__main__":
    main()
