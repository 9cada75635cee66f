"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over dE0: sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / N_s^2 + ridge * |dE0|^2, so that what the data
leave open stays where pretraining put it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ..data_pipelines.schema import Structure
from ..model_zoo.potential import Potential
from ..pretrain.evaluation import predict


RIDGE = 1e-6  # per structure; breaks ties only


@dataclass(frozen=True)
class ReferenceReport:
    """What the refit did; energies in eV, errors in eV/atom on the structures that it was fitted to."""

    shifts: dict[str, float]
    undetermined: list[str]
    mae_before: float
    mae_after: float


def refit_reference_energies(potential: Potential, head: int, structures: list[Structure]) -> ReferenceReport:
    """Change `potential.e0[head]` in place to fit the energies of `structures`.

    Raises ValueError when no structure has an energy.
    """
    labelled = [s for s in structures if s.energy is not None]
    if not labelled:
        raise ValueError("no structure has an energy: reference energies cannot be refitted")
    energy = predict(potential, labelled).energy
    size = np.array([len(s) for s in labelled])
    residual = (energy[:, 0] - energy[:, 1]) / size  # (S,)
    elements = np.unique(np.concatenate([s.atomic_numbers for s in labelled]))
    share = np.stack([[(s.atomic_numbers == z).mean() for z in elements] for s in labelled])  # (S, elements)
    normal = share.T @ share
    shift = np.linalg.solve(normal + RIDGE * len(labelled) * np.eye(len(elements)), share.T @ residual)
    potential.e0[head, elements] += potential.e0.new_tensor(shift)
    values, vectors = np.linalg.eigh(normal)
    free = np.abs(vectors[:, values < 1e-9 * values.max()])
    return ReferenceReport(
        shifts={chemical_symbols[z]: float(v) for z, v in zip(elements, shift, strict=True)},
        undetermined=[chemical_symbols[z] for z, row in zip(elements, free, strict=True) if (row > 1e-4).any()],
        mae_before=float(np.abs(residual).mean()),
        mae_after=float(np.abs(residual - share @ shift).mean()),
    )
