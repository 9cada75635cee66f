"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over the shifts dE0

    sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / (N_s sigma_E)^2 + sum_z (dE0_z / sigma_z)^2

where N_s is the number of atoms of structure s, and n_sz that of its atoms of element z.

An element that the head saw in pretraining has sigma_z = 0.3 eV: its E0 is known, unless many
structures contradict it. An element that the head never saw, and every element of a new level of
theory, is free. When known elements would have to move by more than an eV, the data have another
zero of energy (another functional, pseudopotentials, a subtracted reference), and all are free.

Far-off structures count by their distance and not by its square (Huber's estimate, by reweighting).

A fit can lower the errors of its own structures and raise those of all others. So it is judged on
structures that it has not seen: the held-out ones, or where there are none, each part of the data
in turn. When the fit is worse there than no change, narrower priors are tried, and at last E0 stays
as it is.

An isolated atom shows its E0 alone, provided that the model knows isolated atoms. A model that was
trained on condensed matter is wrong about them by electron volts, and then E0 belongs to the rest
of the data. So isolated atoms are held to (no reweighting) where this is at least as good on the
structures left out, and are otherwise ordinary structures.

Shapes: S structures, Z elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from ...core.errors import EvenfieldError
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential
from ..target import alike


# eV/atom, the error of a readout before its refit
ENERGY_NOISE = 0.1
# eV, prior width of the E0 of a known element
KNOWN_WIDTH = 0.3
# eV, narrower priors that are tried when a fit is worse on structures that it has not seen
NARROWER_WIDTHS = (0.1, 0.03, 0.01)
# eV, prior width of a free E0: total energies per atom of two codes differ by that much
FREE_WIDTH = 1e4
# eV/atom; no model that knows the zero of energy has a median error above this
ANOTHER_ZERO = 1.0
# Structures count as made of known elements if these are at least this share of the atoms.
ALL_ATOMS = 0.999
# An E0 is undetermined if its posterior is wider than this share of the free prior.
UNDETERMINED = 0.1
REWEIGHTINGS = 20
# Without held-out structures, the data are left out in at most so many parts.
MAX_PARTS = 16
# Errors are equal up to this relative difference.
ROUNDING = 1e-9


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
    narrowed: bool = False
    """The full fit was worse on structures that it had not seen, and less of it was kept."""
    isolated_atoms: dict[str, float] = field(default_factory=dict)
    """Element symbol -> label minus prediction of an isolated atom after the refit, in eV."""


def reference_precision(elements: np.ndarray, known: set[int]) -> np.ndarray:
    """Prior precision 1 / sigma_z^2 (1/eV^2) of the change of each element's E0."""
    is_known = [z in known for z in elements]
    widths = np.where(is_known, KNOWN_WIDTH, FREE_WIDTH)
    return widths**-2.0


def refit_reference_energies(
    potential: Potential,
    head: int,
    structures: list[Structure],
    known: set[int],
    *,
    held_out: Sequence[Structure] = (),
) -> ReferenceReport:
    """Change `potential.e0[head]` in place to fit the energies of `structures`.

    known: atomic numbers that the head saw in training.
    held_out: structures that judge the fit. Without any that has an energy, parts of `structures`
        are left out in turn.

    Neither the mean absolute error of `structures` nor that of the structures left out rises.
    Raises NoEnergyError without any energy.
    """
    labelled = [structure for structure in structures if structure.energy is not None]
    if not labelled:
        raise NoEnergyError(
            "no structure has an energy, so reference energies E0 cannot be refitted",
            remedy="add at least one structure with an energy",
        )
    elements = np.unique(np.concatenate([structure.atomic_numbers for structure in labelled]))
    data = _energy_errors(potential, labelled, elements)
    others = [structure for structure in held_out if structure.energy is not None]
    unseen = _energy_errors(potential, others, elements) if others else None

    another_zero = _has_another_zero(data.error, data.share, elements, known)
    if another_zero:
        known = set()
    fits = _fits(data, elements, known)
    chosen = _first_that_is_not_worse(fits, data, unseen, _parts(labelled))

    if chosen is None:
        shift = np.zeros(len(elements))
        # the matrix alone says how well the data determine each E0
        _, normal = fits[0].to(data)
    else:
        shift, normal = chosen.to(data)
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

    left = data.left(shift)
    isolated_atoms = {}
    for row in np.flatnonzero(data.isolated):
        symbol = chemical_symbols[labelled[row].atomic_numbers[0]]
        isolated_atoms[symbol] = float(left[row])
    return ReferenceReport(
        shifts=shifts,
        undetermined=undetermined,
        mae_before=float(np.abs(data.error).mean()),
        mae_after=float(np.abs(left).mean()),
        another_zero=another_zero,
        narrowed=chosen is None or chosen.narrowed,
        isolated_atoms=isolated_atoms,
    )


@dataclass(frozen=True)
class _EnergyErrors:
    """What the potential gets wrong, and the composition that an E0 may explain it by."""

    error: np.ndarray
    """(S,) label minus prediction, eV/atom"""
    share: np.ndarray
    """(S, Z) share of each element in the atoms"""
    isolated: np.ndarray
    """(S,) whether the structure is a single atom without periodicity"""

    def left(self, shift: np.ndarray) -> np.ndarray:
        """(S,) errors that are left when E0 changes by `shift` (Z,)."""
        return self.error - self.share @ shift

    def mae(self, shift: np.ndarray) -> float:
        """Mean absolute error after a change of E0."""
        return float(np.abs(self.left(shift)).mean())

    def of(self, rows: np.ndarray) -> _EnergyErrors:
        """The same of some structures."""
        return _EnergyErrors(self.error[rows], self.share[rows], self.isolated[rows])


@dataclass(frozen=True)
class _Fit:
    """One way to fit E0."""

    precision: np.ndarray
    """(Z,) of the prior"""
    hold_isolated: bool = False
    """Isolated atoms keep their full weight, however far off they are."""
    narrowed: bool = False
    """The prior is narrower than the usual one."""

    def to(self, data: _EnergyErrors) -> tuple[np.ndarray, np.ndarray]:
        """Shifts (Z,) by Huber's estimate, and the matrix of the last weighted equations."""
        weight = np.ones(len(data.error))
        for _ in range(REWEIGHTINGS):
            weighted = data.share * weight[:, None] / ENERGY_NOISE**2
            normal = weighted.T @ data.share + np.diag(self.precision)
            shift = np.linalg.solve(normal, weighted.T @ data.error)

            left = np.abs(data.left(shift))
            # the noise may be larger than assumed; at least half of the structures count fully
            width = max(ENERGY_NOISE, float(np.median(left)))
            weight = np.minimum(1.0, width / np.maximum(left, 1e-12))
            if self.hold_isolated:
                weight[data.isolated] = 1.0
        return shift, normal


def _fits(data: _EnergyErrors, elements: np.ndarray, known: set[int]) -> list[_Fit]:
    """The fits that are tried, in the order of preference."""
    precision = reference_precision(elements, known)
    fits = [_Fit(precision)]
    if data.isolated.any() and not data.isolated.all():
        fits.insert(0, _Fit(precision, hold_isolated=True))
    if np.median(np.abs(data.error)) > ANOTHER_ZERO:
        # E0 has to move by more than an eV: half of the way would be as wrong as none of it
        return fits

    # At a new level of theory no E0 is known. That of the head it started from is near enough.
    near = np.array([z in known for z in elements])
    if not near.any():
        near[:] = True
    for width in NARROWER_WIDTHS:
        fits.append(_Fit(np.where(near, width**-2.0, precision), narrowed=True))
    return fits


def _first_that_is_not_worse(
    fits: list[_Fit],
    data: _EnergyErrors,
    unseen: _EnergyErrors | None,
    parts: list[np.ndarray],
) -> _Fit | None:
    """The first fit that raises no error on its data or on structures left out; None without any.

    A fit that holds to isolated atoms must also be as good as the usual one.
    """
    unchanged = np.zeros(data.share.shape[1])
    bound = _left_out_error(None, data, unseen, parts)
    for index, fit in enumerate(fits):
        shift, _ = fit.to(data)
        if data.mae(shift) > data.mae(unchanged):
            continue
        left_out = _left_out_error(fit, data, unseen, parts)
        limit = bound
        if fit.hold_isolated:
            limit = min(bound, _left_out_error(fits[index + 1], data, unseen, parts))
        if left_out <= limit * (1 + ROUNDING):
            return fit
    return None


def _left_out_error(
    fit: _Fit | None, data: _EnergyErrors, unseen: _EnergyErrors | None, parts: list[np.ndarray]
) -> float:
    """Mean absolute error (eV/atom) on structures that a fit has not seen; None: without a fit.

    Zero when nothing can be left out.
    """
    unchanged = np.zeros(data.share.shape[1])
    if unseen is not None:
        return unseen.mae(unchanged if fit is None else fit.to(data)[0])
    if len(parts) < 2:
        return 0.0

    total = 0.0
    for part in parts:
        left_out = np.zeros(len(data.error), dtype=bool)
        left_out[part] = True
        shift = unchanged if fit is None else fit.to(data.of(~left_out))[0]
        # An isolated atom says nothing about the rest, and would outweigh it.
        judging = left_out & ~data.isolated
        total += float(np.abs(data.of(judging).left(shift)).sum())
    return total


def _parts(structures: list[Structure]) -> list[np.ndarray]:
    """Indices of the structures in at most MAX_PARTS parts; copies belong to one part."""
    place = {id(structure): index for index, structure in enumerate(structures)}
    groups = [[place[id(one)] for one in group] for group in alike(structures)]
    num_parts = min(MAX_PARTS, len(groups))
    parts = []
    for first in range(num_parts):
        indices = [index for group in groups[first::num_parts] for index in group]
        parts.append(np.array(indices))
    return parts


def _energy_errors(
    potential: Potential, structures: list[Structure], elements: np.ndarray
) -> _EnergyErrors:
    pairs = predict(potential, structures).energy  # (S, 2): label, prediction
    num_atoms = np.array([len(structure) for structure in structures])
    error = (pairs[:, 0] - pairs[:, 1]) / num_atoms
    isolated = [len(structure) == 1 and not structure.pbc.any() for structure in structures]
    return _EnergyErrors(error, _composition(structures, elements), np.array(isolated))


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
