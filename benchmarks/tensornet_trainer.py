"""TensorNet, by matgl's own training module for a number of processor seconds.

    python tensornet_trainer.py SETTINGS.json

The network is matgl's TensorNet with its defaults (two layers, 32 radial functions). Its energies
are in units of the root mean square force, as matgl advises. The learning rate (Adam at 0.001, a
cosine to a hundredth) and equal weights of energies and forces are those of matgl's trainer and of
`mgl train`. Huber at 0.01 is the loss that matgl's potentials were published with (Chen and Ong,
Nat. Comput. Sci. 2, 718 (2022)). Batches have eight structures, as those of TensorNet's authors for
small sets (torchmd-net, examples/TensorNet-rMD17.yaml). The setting `channels` is matgl's `units`.
The model has no core repulsion. Prints one line of JSON.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

from trainer_protocol import (
    Answer,
    Clock,
    keep_freed_memory,
    measure,
    read_settings,
    versions,
    with_labels,
)

ANSWER = Answer()  # lightning prints

import lightning
import torch
from matgl.apps.pes import Potential
from matgl.ext.ase import Atoms2Graph, PESCalculator
from matgl.graph.data import MGLDataset, collate_fn_pes
from matgl.models import TensorNet
from matgl.utils.training import PotentialLightningModule


LEARNING_RATE = 1e-3
LAST_SHARE = 0.01  # of the learning rate, at the end
BATCH_SIZE = 8  # structures


class Schedule(lightning.Callback):
    """Sets the learning rate by the processor time, and ends the run when the time is spent."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.clock.go_on()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        share = LAST_SHARE + (1 - LAST_SHARE) * self.clock.cosine()
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = LEARNING_RATE * share

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.step()
        trainer.should_stop = self.clock.is_over


def loader_of(settings: dict[str, Any], elements: tuple[str, ...], folder: str) -> Any:
    """Batches of the training structures, whose graphs are all made here."""
    structures = with_labels(settings["train"])
    dataset = MGLDataset(
        structures=structures,
        converter=Atoms2Graph(elements, settings["cutoff"]),
        labels={
            "energies": [atoms.get_potential_energy() for atoms in structures],
            "forces": [atoms.get_forces().tolist() for atoms in structures],
        },
        root=folder,
        save_cache=False,
    )
    collate = partial(collate_fn_pes, include_stress=False)
    return torch.utils.data.DataLoader(
        dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate
    )


def main() -> None:
    settings = read_settings()
    torch.set_num_threads(1)
    keep_freed_memory()
    lightning.seed_everything(settings["seed"])
    elements = tuple(sorted(settings["e0"]))
    model = TensorNet(
        element_types=elements,
        units=settings["channels"],
        cutoff=settings["cutoff"],
        is_intensive=False,
    )
    module = PotentialLightningModule(
        model,
        element_refs=[settings["e0"][name] for name in elements],
        data_std=settings["force_rms"],
        loss="huber_loss",
        loss_params={"delta": 0.01},
        lr=LEARNING_RATE,
    )
    clock = Clock(settings["seconds"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=10**6,
        callbacks=[Schedule(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(module, loader_of(settings, elements, folder))
    potential: Potential = module.model
    calculator = PESCalculator(potential.eval(), stress_unit="eV/A3", use_voigt=True)
    row = clock.report(BATCH_SIZE) | measure(calculator, settings)
    row["versions"] = versions("matgl", "torch")
    ANSWER.give(row)


if __name__ == "__main__":
    main()
