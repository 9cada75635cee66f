"""Evenfield's side of the comparison; train_step.py starts it in our own environment.

Modes: ``eager`` and ``compile``.
"""

from __future__ import annotations

from typing import Any

import ase.io
import torch
from worker_protocol import LEARNING_RATE, Forward, Labels, Trainer, facts, parse_arguments, serve

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.read import structure_from_atoms
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.compile.compiled import compile_for_inference, compile_for_training
from evenfield.model_zoo.compile.padded_shape import PaddedShape
from evenfield.pretrain.loop.optimizer import OptimizerConfig, new_optimizer, parameter_groups


def make_batch(structures: list[Any], cutoff: float) -> Batch:
    """All structures as one evenfield batch."""
    source = SourceConfig(level_of_theory="default")
    canonical = [structure_from_atoms(atoms, source, str(i)) for i, atoms in enumerate(structures)]
    return Batch.join([Batch.from_structure(structure, cutoff) for structure in canonical])


def forward_of(model: torch.nn.Module, batch: Batch) -> Forward:
    """A call for energy and forces; the training flag keeps the graph for the second derivative."""

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        output = model(batch)
        return output.energy.float(), output.forces

    return forward


def compile_training(potential: Potential, batch: Batch) -> None:
    """Have training compiled for the sizes of this very batch."""
    _, tiles = potential.edge_vectors(batch)
    shape = PaddedShape(batch.num_atoms, len(tiles.receiver), tiles.size)
    compile_for_training(potential, shape)


def own_optimizer(potential: Potential, **settings: Any) -> torch.optim.Optimizer:
    """The optimizer of a pretraining, of its default settings but for these."""
    config = OptimizerConfig(learning_rate=LEARNING_RATE, **settings)
    return new_optimizer(parameter_groups(potential, config), config)


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    structures = ase.io.read(options.structures, ":")
    batch = make_batch(structures, options.cutoff)
    config = PotentialConfig(
        channels=options.channels,
        l_max=options.l_max,
        l_hidden=options.hidden_l,
        num_layers=options.layers,
        correlation=3,
        cutoff=options.cutoff,
        num_neighbours=batch.num_edges / batch.num_atoms,
    )
    torch.manual_seed(0)
    trained = Potential(config)
    frozen = Potential(config).eval().requires_grad_(False)
    if options.mode == "compile":
        compile_training(trained, batch)
        compile_for_inference(frozen)
    parameters = list(trained.parameters())
    ready = facts(
        ["evenfield", "torch", "e3nn"],
        mode=options.mode,
        num_parameters=sum(p.numel() for p in parameters),
        num_atoms=int(batch.num_atoms),
        num_edges=int(batch.num_edges),
    )
    trainer = Trainer(own_optimizer(trained), forward_of(trained, batch), Labels(structures))
    serve(ready, trainer, torch.no_grad()(forward_of(frozen, batch)))


if __name__ == "__main__":
    main()
