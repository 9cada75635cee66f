"""PET, by metatrain's own trainer for a number of processor seconds: settings in, errors out.

    python pet_trainer.py SETTINGS.json

All settings but three are metatrain's defaults for PET (on its page about the architecture: two
layers of two attention layers, Adam at 1e-4, a cosine after a warm-up of a hundredth of the run).
Batches have five structures instead of 16, so that there are enough steps in minutes. Losses are
Huber's, since absolute errors are judged. The cutoff is that of all others. The setting `channels`
is `d_pet` and `d_head`; `d_node` and `d_feedforward` are twice as large, as in the defaults. The
model has no core repulsion. Prints one line of JSON.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from trainer_protocol import (
    Answer,
    Clock,
    keep_freed_memory,
    measure,
    read_settings,
    versions,
)

ANSWER = Answer()  # metatrain prints

import torch
from ase.data import atomic_numbers
from metatomic_ase import MetatomicCalculator
from metatrain import pet
from metatrain.cli.train import train_model
from metatrain.pet import trainer as loop
from omegaconf import OmegaConf


LEARNING_RATE = 1e-4
WARM_UP_SHARE = 0.01
BATCH_SIZE = 5  # structures


class BudgetSpent(BaseException):
    """Ends metatrain's loop, which counts epochs and turns every `Exception` into its own error."""


class Rate:
    """metatrain's schedule over processor seconds instead of steps; ends the run with them."""

    def __init__(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        self.optimizer = optimizer
        self.clock = clock
        self._set()

    def _set(self) -> None:
        warm = min(1.0, self.clock.share / WARM_UP_SHARE)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (self.clock.cosine() if warm == 1.0 else warm)

    def step(self) -> None:
        """Called by metatrain after each step of training."""
        self.clock.step()
        self._set()
        if self.clock.is_over:
            raise BudgetSpent

    def state_dict(self) -> dict[str, Any]:
        """Nothing; metatrain asks for it when it saves."""
        return {}


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of the options file of `mtt train`."""

    def part(split: str) -> dict[str, Any]:
        return {
            "systems": {
                "read_from": settings[split],
                "reader": "ase",
                "length_unit": "angstrom",
            },
            "targets": {
                "energy": {
                    "key": "REF_energy",
                    "unit": "eV",
                    "forces": {"key": "REF_forces"},
                    "stress": False,
                    "virial": False,
                }
            },
        }

    channels = settings["channels"]
    baseline = {atomic_numbers[name]: energy for name, energy in settings["e0"].items()}
    return {
        "device": "cpu",
        "base_precision": 32,
        "seed": settings["seed"],
        "architecture": {
            "name": "pet",
            "atomic_types": sorted(baseline),
            "model": {
                "cutoff": settings["cutoff"],
                "d_pet": channels,
                "d_head": channels,
                "d_node": 2 * channels,
                "d_feedforward": 2 * channels,
            },
            "training": {
                "batch_size": BATCH_SIZE,
                "num_epochs": 10**6,
                "learning_rate": LEARNING_RATE,
                "log_interval": 10**6,
                "checkpoint_interval": 10**6,
                "num_workers": 0,
                "atomic_baseline": {"energy": baseline},
                "loss": "huber",
            },
        },
        "training_set": part("train"),
        "validation_set": part("valid"),
        "test_set": 0.0,
    }


def trained(settings: dict[str, Any], clock: Clock) -> torch.nn.Module:
    """The network at the end of the budget, when its learning rate is zero.

    metatrain has no hook for a budget, so its scheduler, loader and trainer are replaced.
    """
    models: list[torch.nn.Module] = []

    class Trainer(loop.Trainer):
        def train(self, model: torch.nn.Module, *arguments: Any, **named: Any) -> None:
            # the only way to the model: `train_model` does not return when the budget ends it
            models.append(model)
            super().train(model, *arguments, **named)

    class Loader(loop.CombinedDataLoader):
        def __iter__(self) -> Any:
            # a new pass begins: the validation before it does not count
            clock.go_on()
            return super().__iter__()

    loop.get_scheduler = lambda optimizer, *_: Rate(optimizer, clock)
    loop.CombinedDataLoader = Loader
    pet.__trainer__ = Trainer
    try:
        train_model(OmegaConf.create(options_of(settings)))
    except BudgetSpent:
        return models[0]
    raise RuntimeError("metatrain ended before its budget was spent")


def main() -> None:
    settings = read_settings()
    torch.set_num_threads(1)
    keep_freed_memory()
    clock = Clock(settings["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        # metatrain writes checkpoints and logs where it runs
        os.chdir(folder)
        model = trained(settings, clock)
        os.chdir(before)
        # in TorchScript, as `mtt train` leaves it
        exported = Path(folder) / "model.pt"
        model.eval().export().save(exported)
        # without a margin it makes its neighbour list in every call, as the other packages do
        calculator = MetatomicCalculator(exported, device="cpu", neighbor_skin=0.0)
        row = clock.report(BATCH_SIZE) | measure(calculator, settings)
    row["versions"] = versions("metatrain", "metatomic-torch", "torch")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
