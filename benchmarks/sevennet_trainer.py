"""SevenNet's own trainer for a number of processor seconds: settings in, errors out.

    python sevennet_trainer.py SETTINGS.json

Model, batch size and learning rate are those of the example that sevenn ships (presets/base.yaml:
l_max 2, three layers, Adam at 0.005, four structures a batch). Loss and schedule are those of
SevenNet-0 (presets/sevennet-0.yaml: Huber at 0.01 with equal weights of energies and forces, a rate
that falls linearly to a ten-thousandth). The squared loss of the example would not suit a
comparison of absolute errors. The model has no core repulsion. Prints one line of JSON.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

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

ANSWER = Answer()  # sevenn prints

import tempfile
from pathlib import Path

import sevenn
import torch
import yaml
from ase.data import atomic_numbers
from sevenn import _keys as KEY
from sevenn._const import NUM_UNIV_ELEMENT
from sevenn.calculator import SevenNetCalculator
from sevenn.logger import Logger
from sevenn.model_build import build_E3_equivariant_model
from sevenn.parse_input import read_config_yaml
from sevenn.train import graph_dataset
from sevenn.train.trainer import Trainer
from sevenn.scripts.train import loader_from_config


LEARNING_RATE = 0.005
LAST_SHARE = 1e-4  # of the learning rate, at the end
BATCH_SIZE = 4  # structures


def configuration(settings: dict[str, Any], train: str, folder: Path) -> dict[str, Any]:
    """The settings of the example, with the sizes, files and free atoms of this run."""
    example = Path(sevenn.__file__).parent / "presets" / "base.yaml"
    content = yaml.safe_load(example.read_text())
    content["model"] |= {
        "chemical_species": sorted(settings["e0"]),
        "cutoff": settings["cutoff"],
        "channel": settings["channels"],
    }
    content["train"] |= {
        "random_seed": settings["seed"],
        "is_train_stress": False,
        "loss": "Huber",
        "loss_param": {"delta": 0.01},
        "optim_param": {"lr": LEARNING_RATE},
        "force_loss_weight": 1.0,
        "error_record": [["Energy", "MAE"], ["Force", "MAE"], ["TotalLoss", "None"]],
    }
    del content["train"]["stress_loss_weight"]
    shift = [0.0] * NUM_UNIV_ELEMENT
    for name, energy in settings["e0"].items():
        shift[atomic_numbers[name]] = energy
    content["data"] |= {
        "batch_size": BATCH_SIZE,
        "shift": shift,
        "scale": "force_rms",
        "load_trainset_path": [train],
    }
    for split in ("load_validset_path", "load_testset_path"):
        content["data"].pop(split, None)
    path = folder / "input.yaml"
    path.write_text(yaml.safe_dump(content))
    model, training, data = read_config_yaml(str(path))
    return {**model, **training, **data, KEY.IS_DDP: False, KEY.DEVICE: torch.device("cpu")}


def main() -> None:
    settings = read_settings()
    torch.set_num_threads(1)
    torch.manual_seed(settings["seed"])
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name, Logger(screen=False):
        folder = Path(name)
        labelled = folder / "train.extxyz"
        write_labelled(settings["train"], labelled)
        config = configuration(settings, str(labelled), folder)
        train = graph_dataset.from_config(config, str(folder))["trainset"]
    model = build_E3_equivariant_model(config)
    trainer = Trainer.from_config(model, config)
    clock = Clock(settings["seconds"])

    def batches_of_run() -> Any:
        for batch in clock.batches(loader_from_config(config, train, is_train=True)):
            share = max(LAST_SHARE, 1 - clock.share)
            trainer.optimizer.param_groups[0]["lr"] = LEARNING_RATE * share
            yield batch

    # one epoch for the trainer, which knows no budget: all passes over the data
    trainer.run_one_epoch(batches_of_run(), is_train=True)
    calculator = SevenNetCalculator(model, file_type="model_instance", device="cpu")
    row = clock.report(BATCH_SIZE) | measure(calculator, settings)
    row["versions"] = versions("sevenn", "torch")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
