"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over dE0: sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / (N_s sigma_E)^2 + sum_z (dE0_z / sigma_z)^2.
An element that the head saw in pretraining has sigma_z = 0.3 eV: its E0 is known, unless many structures say
otherwise. One that it never saw, and every element of a new level of theory, is free. When the known ones have to move
by more than an eV, the data have another zero of energy (a functional, pseudopotentials, a reference subtracted) and
all are free. Far-off structures count by their distance, not its square (Huber's estimate, by reweighting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential


ENERGY_NOISE = 0.1  # eV/atom, what an unrefitted readout leaves
KNOWN_WIDTH = 0.3  # eV
FREE_WIDTH = 1e4  # eV; total energies of two codes differ by that much an atom
ANOTHER_ZERO = 1.0  # eV/atom; no model that knows the zero is off by that much in the middle
REWEIGHTINGS = 20


@dataclass(frozen=True)
class ReferenceReport:
    """What the refit did; energies in eV, errors in eV/atom on the structures that it was fitted to.

    `another_zero`: the energies of known elements were not those that the model was trained on.
    """

    shifts: dict[str, float]
    undetermined: list[str]
    mae_before: float
    mae_after: float
    another_zero: bool


def reference_precision(elements: np.ndarray, known: set[int]) -> np.ndarray:
    """1 / sigma_z^2 (1/eV^2) of the pull that holds each element's E0 where pretraining put it."""
    return np.where([z in known for z in elements], KNOWN_WIDTH, FREE_WIDTH) ** -2.0


def refit_reference_energies(
    potential: Potential, head: int, structures: list[Structure], known: set[int]
) -> ReferenceReport:
    """Change `potential.e0[head]` in place to fit the energies of `structures`.

    `known` are the atomic numbers that the head saw in training. A fit may still raise the mean absolute error: E0
    then stays as it was. Raises ValueError without any energy.
    """
    labelled = [s for s in structures if s.energy is not None]
    if not labelled:
        raise ValueError("no structure has an energy: reference energies cannot be refitted")
    energy = predict(potential, labelled).energy
    size = np.array([len(s) for s in labelled])
    residual = (energy[:, 0] - energy[:, 1]) / size  # (S,)
    elements = np.unique(np.concatenate([s.atomic_numbers for s in labelled]))
    share = np.stack(
        [[(s.atomic_numbers == z).mean() for z in elements] for s in labelled]
    )  # (S, elements)
    of_known = share[:, [z in known for z in elements]].sum(1) > 0.999
    another_zero = bool(of_known.any() and abs(np.median(residual[of_known])) > ANOTHER_ZERO)
    known = set() if another_zero else known
    shift, normal = _robust_fit(share, residual, reference_precision(elements, known))
    if np.abs(residual - share @ shift).mean() > np.abs(residual).mean():
        shift = np.zeros_like(shift)
    potential.e0[head, elements] += potential.e0.new_tensor(shift)
    spread = np.sqrt(np.diag(np.linalg.inv(normal)))  # posterior width of each shift
    return ReferenceReport(
        shifts={chemical_symbols[z]: float(v) for z, v in zip(elements, shift, strict=True)},
        undetermined=[
            chemical_symbols[z]
            for z, w in zip(elements, spread, strict=True)
            if w > 0.1 * FREE_WIDTH
        ],
        mae_before=float(np.abs(residual).mean()),
        mae_after=float(np.abs(residual - share @ shift).mean()),
        another_zero=another_zero,
    )


def _robust_fit(
    share: np.ndarray, residual: np.ndarray, precision: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (elements,) by Huber's estimate, and the matrix of the last weighted normal equations."""
    weight = np.ones(len(residual))
    for _ in range(REWEIGHTINGS):
        weighted = share * weight[:, None] / ENERGY_NOISE**2
        normal = weighted.T @ share + np.diag(precision)
        shift = np.linalg.solve(normal, weighted.T @ residual)
        left = np.abs(residual - share @ shift)
        width = max(ENERGY_NOISE, float(np.median(left)))
        weight = np.minimum(1.0, width / np.maximum(left, 1e-12))
    return shift, normal
