"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over dE0: sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / (N_s sigma_E)^2 + sum_z (dE0_z / sigma_z)^2.
An element that the head saw in pretraining has sigma_z = 0.3 eV: its E0 is known, unless many structures say
otherwise. One that it never saw, and every element of a new level of theory, is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ..data_pipelines.schema import Structure
from ..model_zoo.potential import Potential
from ..pretrain.evaluation import predict


ENERGY_NOISE = 0.1  # eV/atom, what an unrefitted readout leaves
KNOWN_WIDTH = 0.3  # eV
FREE_WIDTH = 1e4  # eV; total energies of two codes differ by that much an atom


@dataclass(frozen=True)
class ReferenceReport:
    """What the refit did; energies in eV, errors in eV/atom on the structures that it was fitted to."""

    shifts: dict[str, float]
    undetermined: list[str]
    mae_before: float
    mae_after: float


def reference_precision(elements: np.ndarray, known: set[int]) -> np.ndarray:
    """1 / sigma_z^2 (1/eV^2) of the pull that holds each element's E0 where pretraining put it."""
    return np.where([z in known for z in elements], KNOWN_WIDTH, FREE_WIDTH) ** -2.0


def refit_reference_energies(
    potential: Potential, head: int, structures: list[Structure], known: set[int]
) -> ReferenceReport:
    """Change `potential.e0[head]` in place to fit the energies of `structures`.

    `known` are the atomic numbers that the head saw in training. Least squares may raise the mean absolute error for
    the sake of one far-off structure: E0 then stays as it was. Raises ValueError without any energy.
    """
    labelled = [s for s in structures if s.energy is not None]
    if not labelled:
        raise ValueError("no structure has an energy: reference energies cannot be refitted")
    energy = predict(potential, labelled).energy
    size = np.array([len(s) for s in labelled])
    residual = (energy[:, 0] - energy[:, 1]) / size  # (S,)
    elements = np.unique(np.concatenate([s.atomic_numbers for s in labelled]))
    share = np.stack([[(s.atomic_numbers == z).mean() for z in elements] for s in labelled])  # (S, elements)
    normal = share.T @ share / ENERGY_NOISE**2 + np.diag(reference_precision(elements, known))
    shift = np.linalg.solve(normal, share.T @ residual / ENERGY_NOISE**2)
    if np.abs(residual - share @ shift).mean() > np.abs(residual).mean():
        shift = np.zeros_like(shift)
    potential.e0[head, elements] += potential.e0.new_tensor(shift)
    spread = np.sqrt(np.diag(np.linalg.inv(normal)))  # posterior width of each shift
    return ReferenceReport(
        shifts={chemical_symbols[z]: float(v) for z, v in zip(elements, shift, strict=True)},
        undetermined=[chemical_symbols[z] for z, w in zip(elements, spread, strict=True) if w > 0.1 * FREE_WIDTH],
        mae_before=float(np.abs(residual).mean()),
        mae_after=float(np.abs(residual - share @ shift).mean()),
    )
