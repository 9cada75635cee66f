"""NequIP's side of the comparison; train_step.py starts it in NequIP's own environment.

Modes: ``eager``; ``compile`` is its ``compile_mode``, torch.compile through the derivative, for
training and for the calls; a single structure is run by the plain model in either mode, as NequIP
does it. ``--hidden-l`` is not used: NequIP's features reach the degree of its edges. As its
documentation advises for speed, they have no odd mirror parity.
"""

from __future__ import annotations

from typing import Any

import ase.io
import torch
from ase.data import chemical_symbols
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from worker_protocol import LEARNING_RATE, Forward, Labels, Trainer, facts, parse_arguments, serve


def make_batch(
    structures: list[Any], elements: list[str], cutoff: float
) -> dict[str, torch.Tensor]:
    """All structures as one NequIP batch in float32."""
    to_types = ChemicalSpeciesToAtomTypeMapper(elements)
    frames = [
        to_types(compute_neighborlist_(from_ase(atoms), r_max=cutoff)) for atoms in structures
    ]
    batch = AtomicDataDict.batched_from_list(frames)
    return {key: v.float() if v.dtype == torch.float64 else v for key, v in batch.items()}


def forward_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Forward:
    """A call for energy and forces; training mode keeps their graph for the second derivative."""

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        output = model(dict(batch))
        return output["total_energy"].flatten(), output["forces"]

    return forward


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    set_global_state(allow_tf32=False)
    structures = ase.io.read(options.structures, ":")
    elements = sorted({chemical_symbols[z] for atoms in structures for z in atoms.numbers})
    batch = make_batch(structures, elements, options.cutoff)
    num_atoms = len(batch["pos"])
    num_edges = batch["edge_index"].shape[1]

    def make() -> torch.nn.Module:
        return NequIPGNNModel(
            seed=0,
            model_dtype="float32",
            compile_mode=options.mode,
            type_names=elements,
            r_max=options.cutoff,
            num_layers=options.layers,
            l_max=options.l_max,
            parity=False,
            num_features=options.channels,
            radial_mlp_depth=1,
            radial_mlp_width=128,
            avg_num_neighbors=num_edges / num_atoms,
        )

    trained = make().train()
    frozen = make().eval().requires_grad_(False)
    parameters = list(trained.parameters())
    ready = facts(
        ["nequip", "torch", "e3nn"],
        mode=options.mode,
        num_parameters=sum(p.numel() for p in parameters),
        num_atoms=int(num_atoms),
        num_edges=int(num_edges),
    )
    # its tutorial's, in the faster of torch's two forms
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    serve(
        ready,
        Trainer(optimizer, forward_of(trained, batch), Labels(structures)),
        forward_of(frozen, batch),
    )


if __name__ == "__main__":
    main()
