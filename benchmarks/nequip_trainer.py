"""NequIP's own trainer for a number of processor seconds: settings in, errors out.

    python nequip_trainer.py SETTINGS.json

Optimiser, EMA and batch size are those of NequIP's tutorial configuration, float32, compiled. The
loss is either the squares of the tutorial or the Huber losses that NequIP's foundation models were
trained with. The rate falls by a cosine over the time given instead of waiting for plateaus, which
short runs never see. The trained model is compiled by nequip-compile (AOTInductor), as its
documentation advises, and then tested and timed.

Prints one line of JSON: test errors (eV/atom, eV/A), the seconds of training (the first steps,
which compile, count as the mean of the rest; validation does not count), the steps.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from trainer_protocol import Answer, Clock, keep_freed_memory, measure, read_settings, versions

ANSWER = Answer()  # Lightning prints

import lightning
import torch
from hydra.utils import instantiate
from nequip.integrations.ase import NequIPCalculator
from nequip.scripts.compile import main as compile_checkpoint
from nequip.train import EMALightningModule
from nequip.utils import get_current_code_versions
from nequip.utils.global_state import get_latest_global_state, set_global_state


LEARNING_RATE = 0.01
BATCH_SIZE = 5  # structures
# Where a Huber loss turns from squares to absolute errors: eV/atom for energies; for forces,
# smallest size of the reference force (eV/A) -> eV/A.
ENERGY_DELTA = 0.01
FORCE_DELTAS = {0: 0.01, 100: 0.007, 200: 0.004, 300: 0.001}


# Name of the loss in the settings -> its configuration; energies count per atom in both.
LOSSES: dict[str, dict[str, Any]] = {
    "squares": {
        "_target_": "nequip.train.EnergyForceLoss",
        "per_atom_energy": True,
        "coeffs": {"total_energy": 1.0, "forces": 1.0},
    },
    "huber": {
        "_target_": "nequip.train.MetricsManager",
        "metrics": [
            {
                "name": "per_atom_energy_huber",
                "field": {"_target_": "nequip.data.PerAtomModifier", "field": "total_energy"},
                "coeff": 1.0,
                "metric": {"_target_": "nequip.train.HuberLoss", "delta": ENERGY_DELTA},
            },
            {
                "name": "forces_huber",
                "field": "forces",
                "coeff": 1.0,
                "metric": {
                    "_target_": "nequip.train.StratifiedHuberForceLoss",
                    "delta_dict": FORCE_DELTAS,
                },
            },
        ],
    },
}


class Schedule(lightning.Callback):
    """Sets the rate by the processor time, and ends the run with it."""

    def __init__(self, clock: Clock, checkpoint: Path) -> None:
        self.clock = clock
        self.checkpoint = checkpoint

    def on_train_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.checkpoint)  # later its data module cannot be saved any more

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        rate = LEARNING_RATE * self.clock.cosine()
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = max(rate, 1e-6)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.step()
        trainer.should_stop = self.clock.is_over

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.clock.go_on()


def data_config(settings: dict[str, Any]) -> dict[str, Any]:
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
    return {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": settings["seed"],
        "train_file_path": settings["train"],
        "val_file_path": settings["valid"],
        "test_file_path": settings["test"],
        "transforms": transforms,
        "include_keys": ["REF_energy", "REF_forces"],
        "key_mapping": {"REF_energy": "total_energy", "REF_forces": "forces"},
        "train_dataloader": loader | {"batch_size": BATCH_SIZE, "shuffle": True},
        "val_dataloader": loader | {"batch_size": 10},
        "test_dataloader": loader | {"batch_size": 10},
    }


def record_for_compiling(settings: dict[str, Any]) -> dict[str, Any]:
    """What nequip-compile reads from a checkpoint beside the weights, as nequip-train keeps it."""
    return {
        "versions": get_current_code_versions(verbose=False),
        "data": data_config(settings),
        "trainer": {},
        "global_options": get_latest_global_state(),
        "runs": ["train"],
        "training_module": {"_target_": "nequip.train.EMALightningModule"},
    }


def module_of(settings: dict[str, Any], num_datasets: dict[str, int]) -> EMALightningModule:
    """The tutorial's model of the sizes asked for."""
    metrics = {
        "_target_": "nequip.train.EnergyForceMetrics",
        "coeffs": {"per_atom_energy_mae": 1.0, "forces_mae": 1.0},
    }
    return EMALightningModule(
        ema_decay=0.999,
        loss=LOSSES[settings["loss"]],
        val_metrics=metrics,
        test_metrics=metrics,
        optimizer={"_target_": "torch.optim.Adam", "lr": LEARNING_RATE},
        num_datasets=num_datasets,
        info_dict=record_for_compiling(settings),
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


def trained(settings: dict[str, Any], clock: Clock, folder: Path) -> NequIPCalculator:
    """A calculator with the averaged weights, compiled for structures of any size."""
    data = instantiate(data_config(settings), _recursive_=False)
    module = module_of(settings, data.num_datasets)
    checkpoint = folder / "trained.ckpt"
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=10**6,
        callbacks=[Schedule(clock, checkpoint)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        inference_mode=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    package = folder / "trained.nequip.pt2"
    words = ["--device", "cpu", "--mode", "aotinductor", "--target", "ase"]
    compile_checkpoint([str(checkpoint), str(package), *words])
    return NequIPCalculator.from_compiled_model(str(package), device="cpu")


def main() -> None:
    settings = read_settings()
    torch.set_num_threads(1)
    keep_freed_memory()
    set_global_state(allow_tf32=False)
    lightning.seed_everything(settings["seed"])
    clock = Clock(settings["seconds"])
    with tempfile.TemporaryDirectory() as name:
        calculator = trained(settings, clock, Path(name))
        row = clock.report(BATCH_SIZE) | measure(calculator, settings)
    row["versions"] = versions("nequip", "torch")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
