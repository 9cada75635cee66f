"""MACE's side of the comparison; train_step.py starts it in MACE's own environment.

Modes: ``eager`` is what MACE's trainer and calculator do by default (e3nn compiles its contractions
with TorchScript when a module is built); ``compile`` hands the whole model to torch.compile as
MACE's own ``mace.tools.compile.prepare`` sets it up, which traces the forces into the graph.
"""

# ruff: noqa: I001
from __future__ import annotations

import argparse
from typing import Any

import ase.io
import numpy as np
import torch
from mace import data, modules, tools
from e3nn import o3  # after mace, whose import lets this e3nn load its tables
from mace.tools.compile import prepare
from mace.tools.torch_geometric import Batch
from worker_protocol import LEARNING_RATE, Forward, Labels, Trainer, facts, parse_arguments, serve


def make_batch(structures: list[Any], cutoff: float) -> tuple[Batch, list[int]]:
    """All structures as one MACE batch, and the atomic numbers that occur in them."""
    z_table = tools.AtomicNumberTable(
        sorted({int(z) for atoms in structures for z in atoms.numbers})
    )
    configurations = [data.config_from_atoms(atoms) for atoms in structures]
    graphs = [
        data.AtomicData.from_config(c, z_table=z_table, cutoff=cutoff) for c in configurations
    ]
    return Batch.from_data_list(graphs), z_table.zs


def make_model(
    options: argparse.Namespace, elements: list[int], neighbors: float
) -> torch.nn.Module:
    """ScaleShiftMACE with its usual settings at the size of the harness; present elements only."""
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    hidden = [f"{options.channels}x{l}{'eo'[l % 2]}" for l in range(options.hidden_l + 1)]  # noqa: E741
    return modules.ScaleShiftMACE(
        r_max=options.cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=options.l_max,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=options.layers,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps("+".join(hidden)),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=neighbors,
        atomic_numbers=elements,
        correlation=3,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def forward_of(model: torch.nn.Module, batch: dict[str, Any], training: bool) -> Forward:
    """A call for energy and forces; in training their graph is kept for the second derivative."""

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        output = model(batch, training=training, compute_force=True)
        return output["energy"], output["forces"]

    return forward


def main() -> None:
    options = parse_arguments()
    compiled = options.mode == "compile"
    torch.set_num_threads(options.threads)
    structures = ase.io.read(options.structures, ":")
    batch, elements = make_batch(structures, options.cutoff)
    num_edges = batch.edge_index.shape[1]
    sizes = (options, elements, num_edges / batch.num_nodes)
    make = prepare(make_model) if compiled else make_model
    trained = make(*sizes)
    frozen = make(*sizes).requires_grad_(False)
    parameters = list(trained.parameters())
    if compiled:
        trained = torch.compile(trained)
        frozen = torch.compile(frozen)
    ready = facts(
        ["mace-torch", "torch", "e3nn"],
        mode=options.mode,
        num_parameters=sum(p.numel() for p in parameters),
        num_atoms=int(batch.num_nodes),
        num_edges=int(num_edges),
    )
    fields = batch.to_dict()
    fields["positions"].requires_grad_(True)  # a compiled graph cannot do it itself
    # its trainer's default, in the faster of torch's two forms
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, amsgrad=True, fused=True)
    trainer = Trainer(optimizer, forward_of(trained, fields, training=True), Labels(structures))
    serve(
        ready, trainer, forward_of(frozen, fields, training=compiled)
    )  # compile traces no other way


if __name__ == "__main__":
    main()
