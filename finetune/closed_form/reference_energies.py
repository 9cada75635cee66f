"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over the shifts dE0

    sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / (N_s sigma_E)^2 + sum_z (dE0_z / sigma_z)^2

where N_s is the number of atoms of structure s, and n_sz that of its atoms of element z.

An element that the head saw in pretraining has sigma_z = 0.3 eV: its E0 is known, unless many
structures contradict it. An element that the head never saw, and every element of a new level of
theory, is free. When known elements would have to move by more than an eV, the data have another
zero of energy (another functional, pseudopotentials, a subtracted reference), and all are free.

Far-off structures count by their distance and not by its square (Huber's estimate, by reweighting).

Shapes: S structures, Z elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ...core.errors import EvenfieldError
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential


# eV/atom, the error of a readout before its refit
ENERGY_NOISE = 0.1
# eV, prior width of the E0 of a known element
KNOWN_WIDTH = 0.3
# eV, prior width of a free E0: total energies per atom of two codes differ by that much
FREE_WIDTH = 1e4
# eV/atom; no model that knows the zero of energy has a median error above this
ANOTHER_ZERO = 1.0
# Structures count as made of known elements if these are at least this share of the atoms.
ALL_ATOMS = 0.999
# An E0 is undetermined if its posterior is wider than this share of the free prior.
UNDETERMINED = 0.1
REWEIGHTINGS = 20


class NoEnergyError(EvenfieldError):
    """Structures without any energy, to which no E0 can be fitted."""


@dataclass(frozen=True)
class ReferenceReport:
    """What the refit did; errors are in eV/atom, on the structures that it was fitted to."""

    shifts: dict[str, float]
    """Change of E0 in eV, by element symbol."""
    undetermined: list[str]
    """Symbols of elements whose E0 the structures do not determine."""
    mae_before: float
    mae_after: float
    another_zero: bool
    """The data have another zero of energy than the model was trained on."""


def reference_precision(elements: np.ndarray, known: set[int]) -> np.ndarray:
    """Prior precision 1 / sigma_z^2 (1/eV^2) of the change of each element's E0."""
    is_known = [z in known for z in elements]
    widths = np.where(is_known, KNOWN_WIDTH, FREE_WIDTH)
    return widths**-2.0


def refit_reference_energies(
    potential: Potential, head: int, structures: list[Structure], known: set[int]
) -> ReferenceReport:
    """Change `potential.e0[head]` in place to fit the energies of `structures`.

    `known` are the atomic numbers that the head saw in training. A least-squares fit may still
    raise the mean absolute error: E0 then stays as it was. Raises NoEnergyError without any energy.
    """
    labelled = [structure for structure in structures if structure.energy is not None]
    if not labelled:
        raise NoEnergyError(
            "no structure has an energy, so reference energies E0 cannot be refitted",
            remedy="add at least one structure with an energy",
        )
    elements = np.unique(np.concatenate([structure.atomic_numbers for structure in labelled]))
    share = _composition(labelled, elements)  # (S, Z)

    pairs = predict(potential, labelled).energy  # (S, 2): label, prediction
    num_atoms = np.array([len(structure) for structure in labelled])
    error = (pairs[:, 0] - pairs[:, 1]) / num_atoms  # (S,), eV/atom

    another_zero = _has_another_zero(error, share, elements, known)
    if another_zero:
        known = set()

    shift, normal = _robust_fit(share, error, reference_precision(elements, known))
    if np.abs(error - share @ shift).mean() > np.abs(error).mean():
        shift = np.zeros_like(shift)
    potential.e0[head, elements] += potential.e0.new_tensor(shift)

    # posterior standard deviation of each E0, eV
    widths = np.sqrt(np.diag(np.linalg.inv(normal)))
    shifts = {}
    undetermined = []
    for z, value, width in zip(elements, shift, widths, strict=True):
        symbol = chemical_symbols[z]
        shifts[symbol] = float(value)
        if width > UNDETERMINED * FREE_WIDTH:
            undetermined.append(symbol)

    return ReferenceReport(
        shifts=shifts,
        undetermined=undetermined,
        mae_before=float(np.abs(error).mean()),
        mae_after=float(np.abs(error - share @ shift).mean()),
        another_zero=another_zero,
    )


def _has_another_zero(
    error: np.ndarray, share: np.ndarray, elements: np.ndarray, known: set[int]
) -> bool:
    """Whether structures of known elements are off by more than a model can be wrong."""
    is_known = [z in known for z in elements]
    known_share = share[:, is_known].sum(1)
    of_known = known_share > ALL_ATOMS
    if not of_known.any():
        return False
    # a median, because a few structures may be wrong for other reasons
    return bool(abs(np.median(error[of_known])) > ANOTHER_ZERO)


def _composition(structures: list[Structure], elements: np.ndarray) -> np.ndarray:
    """The share of each element in the atoms of each structure, (S, Z)."""
    rows = []
    for structure in structures:
        shares = [(structure.atomic_numbers == z).mean() for z in elements]
        rows.append(shares)
    return np.stack(rows)


def _robust_fit(
    share: np.ndarray, error: np.ndarray, precision: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (Z,) by Huber's estimate, and the matrix of the last weighted normal equations."""
    weight = np.ones(len(error))
    for _ in range(REWEIGHTINGS):
        weighted = share * weight[:, None] / ENERGY_NOISE**2
        normal = weighted.T @ share + np.diag(precision)
        shift = np.linalg.solve(normal, weighted.T @ error)

        left = np.abs(error - share @ shift)
        # the noise may be larger than assumed; at least half of the structures count fully
        width = max(ENERGY_NOISE, float(np.median(left)))
        weight = np.minimum(1.0, width / np.maximum(left, 1e-12))
    return shift, normal
