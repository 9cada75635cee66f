"""GRACE and its FS, by gracemaker for a number of processor seconds: settings in, errors out.

    python grace_trainer.py SETTINGS.json

The setting `preset` is `FS`, `GRACE_1LAYER_latest` or `GRACE_2LAYER_latest`; `size` is one of its
`small`, `medium` and `large`. Loss (Huber at 0.01, weights of 16 for energies and 32 for forces),
optimizer (Adam at 0.008, EMA, clipped gradients) and the cosine to a twelfth of the learning rate
are those of gracemaker's wizard. Batches have 8 structures instead of its 16, so that there are
enough steps in minutes, and the cutoff is that of all others. XLA is on, as the wizard has it: the
first step with every shape of a batch compiles, and counts as the mean of the others. The model has
no core repulsion. Prints one line of JSON.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainer_protocol import (
    Answer,
    Clock,
    keep_freed_memory,
    measure,
    read_settings,
    versions,
    write_labelled,
)

ANSWER = Answer()  # tensorflow prints
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # as gracemaker's documentation says
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"

import tensorflow as tf
import yaml
from ase import Atoms
from tensorpotential.calculator import TPCalculator
from tensorpotential.cli import gracemaker
from tensorpotential.cli import train as loop
from tensorpotential.potentials import get_preset_settings
from tensorpotential.tensorpot import TensorPotential


LEARNING_RATE = 0.008
LAST_SHARE = 1 / 12  # of the learning rate, at the end
BATCH_SIZE = 8  # structures


class BudgetSpent(BaseException):
    """Ends gracemaker's loop, which counts epochs."""


class Schedule(tf.keras.callbacks.Callback):
    """Sets the learning rate by the processor time, and ends the run when the time is spent."""

    def __init__(self, potential: TensorPotential, clock: Clock) -> None:
        super().__init__()
        self.potential = potential
        self.clock = clock
        self.shapes: set[tuple[Any, ...]] = set()
        self.is_new = False

    def on_batch_begin(self, batch: int, logs: Any = None) -> None:
        share = LAST_SHARE + (1 - LAST_SHARE) * self.clock.cosine()
        self.potential.optimizer.learning_rate.assign(LEARNING_RATE * share)

    def look_at(self, batch: list[dict[str, Any]]) -> None:
        """Note whether XLA has met a batch of this shape."""
        shape = tuple(sorted((name, tuple(value.shape)) for name, value in batch[0].items()))
        self.is_new = shape not in self.shapes
        self.shapes.add(shape)

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        self.clock.step(compiled=self.is_new)
        if self.clock.is_over:
            raise BudgetSpent


class WithFreeAtoms(TPCalculator):
    """GRACE's calculator plus the energies of the free atoms (eV), which it leaves out."""

    def __init__(self, model: str, e0: dict[str, float]) -> None:
        super().__init__(model=model)
        self.e0 = e0

    def calculate(self, atoms: Atoms | None = None, *arguments: Any, **named: Any) -> None:
        super().calculate(atoms, *arguments, **named)
        free = sum(self.e0[symbol] for symbol in atoms.get_chemical_symbols())
        for name in ("energy", "free_energy"):
            self.results[name] = self.results[name] + free


def input_of(settings: dict[str, Any], train: str) -> dict[str, Any]:
    """The input file of gracemaker, in the form in which its wizard writes it."""
    sizes = dict(get_preset_settings(settings["preset"])[settings["size"]])
    del sizes["rcut"]
    huber = {"type": "huber", "delta": 0.01}
    return {
        "seed": settings["seed"],
        "cutoff": settings["cutoff"],
        "data": {
            "filename": train,
            "reference_energy": settings["e0"],
            "save_dataset": False,
        },
        "potential": {
            "preset": settings["preset"],
            "kwargs": sizes,
            "elements": sorted(settings["e0"]),
            "param_dtype": "float32",
        },
        "fit": {
            "loss": {
                "energy": huber | {"weight": 16},
                "forces": huber | {"weight": 32},
            },
            "maxiter": 10**6,
            "optimizer": "Adam",
            "opt_params": {
                "learning_rate": LEARNING_RATE,
                "use_ema": True,
                "ema_momentum": 0.99,
                "weight_decay": None,
                "clipnorm": 1.0,
            },
            "scheduler": "cosine_decay",
            "scheduler_params": {"minimum_learning_rate": LEARNING_RATE * LAST_SHARE},
            "batch_size": BATCH_SIZE,
            "jit_compile": True,
            "train_max_n_buckets": "auto",
            "auto_bucket_max_padding": 0.3,
            "checkpoint_freq": 10**6,
            "progressbar": False,
            "train_shuffle": True,
        },
    }


def fit(settings: dict[str, Any], clock: Clock, folder: Path) -> None:
    """Train in a folder, where gracemaker then exports the model with its averaged weights.

    gracemaker has no hook for a budget, so its scheduler, step and loop are replaced.
    """
    write_labelled(settings["train"], folder / "train.extxyz")
    (folder / "input.yaml").write_text(yaml.safe_dump(input_of(settings, "train.extxyz")))
    train_adam = loop.train_adam
    step = TensorPotential.distributed_train_step
    schedules: list[Schedule] = []

    def scheduler(potential: TensorPotential, *_: Any) -> Schedule:
        schedules.append(Schedule(potential, clock))
        clock.go_on()
        return schedules[0]

    def step_with_a_look(
        potential: TensorPotential, batch: Any, *arguments: Any, **named: Any
    ) -> Any:
        schedules[0].look_at(batch)
        return step(potential, batch, *arguments, **named)

    # The weights must still be the averaged ones when gracemaker exports the model after training.
    with ExitStack() as averaged:

        def train_until_spent(potential: TensorPotential, **named: Any) -> None:
            try:
                train_adam(potential, **named)
            except BudgetSpent:
                averaged.enter_context(potential.ema_scope())

        loop.LRSchedulerFactory.create_lr_scheduler = staticmethod(scheduler)
        TensorPotential.distributed_train_step = step_with_a_look
        gracemaker.train_adam = train_until_spent
        gracemaker.main(["input.yaml"])


def main() -> None:
    settings = read_settings()
    keep_freed_memory()
    clock = Clock(settings["seconds"])
    with tempfile.TemporaryDirectory() as name:
        before = Path.cwd()
        os.chdir(name)
        fit(settings, clock, Path(name))
        (exported,) = Path(name).rglob("final_model")
        calculator = WithFreeAtoms(str(exported), settings["e0"])
        row = clock.report(BATCH_SIZE) | measure(calculator, settings)
        os.chdir(before)
    row["versions"] = versions("tensorpotential", "tensorflow-cpu")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
