"""NequIP's own trainer for a number of processor seconds: settings in, errors out.

    python nequip_trainer.py SETTINGS.json

Loss, optimiser, EMA and batch size are those of NequIP's tutorial configuration, float32, compiled;
the rate falls by a cosine over the time given instead of waiting for plateaus, which short runs
never see. Prints one line of JSON: test errors (eV/atom, eV/A), the seconds of training (not of the
first steps, which compile, nor of validation), the steps.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # Lightning prints

import lightning
import torch
from nequip.data.datamodule import ASEDataModule
from nequip.train import EMALightningModule
from nequip.utils.global_state import set_global_state


WARM_UP = 10  # steps that are not counted: the compiler meets the first sizes there
LEARNING_RATE = 0.01
BATCH_SIZE = 5  # structures


class Clock(lightning.Callback):
    """Counts processor seconds of training, sets the rate by them, and ends the run."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.steps = 0
        self.seconds = 0.0
        self._since = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        rate = 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * min(1.0, self.seconds / self.budget)))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = max(rate, 1e-6)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.process_time()
        self.steps = self.steps + 1
        if self.steps > WARM_UP:
            self.seconds += now - self._since
        self._since = now
        trainer.should_stop = self.seconds >= self.budget

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._since = time.process_time()


def data_module(settings: dict[str, Any]) -> ASEDataModule:
    """Train, validation and test files with energies and forces in REF_ columns."""
    transforms = [
        {
            "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
            "model_type_names": settings["elements"],
            "chemical_species_to_atom_type_map": {name: name for name in settings["elements"]},
        },
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": settings["cutoff"]},
    ]
    loader = {"_target_": "torch.utils.data.DataLoader", "num_workers": 0}
    return ASEDataModule(
        seed=settings["seed"],
        train_file_path=settings["train"],
        val_file_path=settings["valid"],
        test_file_path=settings["test"],
        transforms=transforms,
        include_keys=["REF_energy", "REF_forces"],
        key_mapping={"REF_energy": "total_energy", "REF_forces": "forces"},
        train_dataloader=loader | {"batch_size": BATCH_SIZE, "shuffle": True},
        val_dataloader=loader | {"batch_size": 10},
        test_dataloader=loader | {"batch_size": 10},
    )


def module_of(settings: dict[str, Any], num_datasets: dict[str, int]) -> EMALightningModule:
    """The tutorial's model of the sizes asked for."""
    metrics = {
        "_target_": "nequip.train.EnergyForceMetrics",
        "coeffs": {"per_atom_energy_mae": 1.0, "forces_mae": 1.0},
    }
    return EMALightningModule(
        ema_decay=0.999,
        loss={
            "_target_": "nequip.train.EnergyForceLoss",
            "per_atom_energy": True,
            "coeffs": {"total_energy": 1.0, "forces": 1.0},
        },
        val_metrics=metrics,
        test_metrics=metrics,
        optimizer={"_target_": "torch.optim.Adam", "lr": LEARNING_RATE},
        num_datasets=num_datasets,
        model={
            "_target_": "nequip.model.NequIPGNNModel",
            "seed": settings["seed"],
            "model_dtype": "float32",
            "compile_mode": "compile",
            "type_names": settings["elements"],
            "r_max": settings["cutoff"],
            "num_layers": settings["layers"],
            "l_max": settings["l_max"],
            "parity": False,
            "num_features": settings["channels"],
            "radial_mlp_depth": 2,
            "radial_mlp_width": 64,
            "avg_num_neighbors": settings["num_neighbours"],
            "per_type_energy_scales": settings["force_rms"],
            "per_type_energy_shifts": settings["e0"],
            "pair_potential": {
                "_target_": "nequip.nn.pair_potential.ZBL",
                "units": "metal",
                "chemical_species": settings["elements"],
            },
        },
    )


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    set_global_state(allow_tf32=False)
    lightning.seed_everything(settings["seed"])
    data = data_module(settings)
    module = module_of(settings, data.num_datasets)
    clock = Clock(settings["seconds"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=10**6,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        inference_mode=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    (errors,) = trainer.test(module, data)
    row = {
        "energy_mae_per_atom": errors["test0_epoch/per_atom_energy_mae"],
        "force_mae": errors["test0_epoch/forces_mae"],
        "seconds": clock.seconds,
        "steps": clock.steps,
        "structures": clock.steps * BATCH_SIZE,
    }
    print(json.dumps(row), file=ANSWER, flush=True)


if __name__ == "__main__":
    main()
