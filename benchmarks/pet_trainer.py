"""PET, by metatrain's own trainer for a number of processor seconds: settings in, errors out.

    python pet_trainer.py SETTINGS.json

All settings are metatrain's defaults for PET (its page of the architecture: two layers of two
attention layers, Adam at 1e-4, a cosine after a warm-up of a hundredth of the run), but for three:
batches of five structures instead of 16, so that it sees enough steps in minutes; Huber losses,
since absolute errors are judged; and a cutoff like that of all others. CHANNELS is `d_pet` and
`d_head`; `d_node` and `d_feedforward` are twice as large, as in the defaults. It has no core
repulsion. Prints one line of JSON.
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
    """Ends metatrain's loop, which counts epochs; it would make an error of its own of others."""


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
        """A step of training ended."""
        self.clock.step()
        self._set()
        if self.clock.is_over:
            raise BudgetSpent

    def state_dict(self) -> dict[str, Any]:
        return {}


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The options file of `mtt train`."""

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
    """The network at the end of the budget, when its rate is zero."""
    found: list[torch.nn.Module] = []

    class Trainer(loop.Trainer):
        def train(self, model: torch.nn.Module, *arguments: Any, **named: Any) -> None:
            found.append(model)
            super().train(model, *arguments, **named)

    class Loader(loop.CombinedDataLoader):
        def __iter__(self) -> Any:
            clock.go_on()  # after a validation
            return super().__iter__()

    loop.get_scheduler = lambda optimizer, *_: Rate(optimizer, clock)
    loop.CombinedDataLoader = Loader
    pet.__trainer__ = Trainer
    try:
        train_model(OmegaConf.create(options_of(settings)))
    except BudgetSpent:
        return found[0]
    raise RuntimeError("metatrain ended before its budget was spent")


def main() -> None:
    settings = read_settings()
    torch.set_num_threads(1)
    keep_freed_memory()
    clock = Clock(settings["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)  # it writes checkpoints and logs
        model = trained(settings, clock)
        os.chdir(before)
        # as `mtt train` leaves it: in TorchScript
        exported = Path(folder) / "model.pt"
        model.eval().export().save(exported)
        # without a margin the list of neighbours is made anew in every call, as those of others are
        calculator = MetatomicCalculator(exported, device="cpu", neighbor_skin=0.0)
        row = clock.report(BATCH_SIZE) | measure(calculator, settings)
    row["versions"] = versions("metatrain", "metatomic-torch", "torch")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
