"""Refit of the reference energies E0 to new data: the first step of every fine-tuning.

Minimises over the shifts dE0

    sum_s (E_s - E_model,s - sum_z n_sz dE0_z)^2 / (N_s sigma_E)^2 + sum_z (dE0_z / sigma_z)^2

where N_s is the number of atoms of structure s, and n_sz that of its atoms of element z.

An element that the head saw in pretraining has sigma_z = 0.3 eV: its E0 is known, unless many
structures contradict it. An element that the head never saw is free, and so is every element of a
new level of theory. If known elements would have to move by more than 1 eV, the data have another
zero of energy (another functional, pseudopotentials, a subtracted reference), and all are free.

Structures that are far off count by their distance and not by its square (Huber's estimate, by
reweighting).

A fit can lower the errors of its own structures and raise those of all others. So it is judged on
structures that it has not seen: the held-out ones, or without any, each part of the data in turn.
If the fit is worse there than no change, narrower priors are tried. If all of them are worse, E0
stays as it is.

The energy of an isolated atom is its E0 and nothing else, if the model has learned isolated atoms.
A model that was trained on condensed matter is wrong about them by electron volts, and then E0 must
serve the rest of the data. So isolated atoms keep their full weight (no reweighting) if that is at
least as good on the structures left out; otherwise they are ordinary structures.

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
# eV, narrower prior widths that are tried if a fit is worse on structures that it has not seen
NARROWER_WIDTHS = (0.1, 0.03, 0.01)
# eV, prior width of a free E0: the total energies per atom of two codes can differ by that much
FREE_WIDTH = 1e4
# eV/atom; no model that knows the zero of energy has a median error above this
ANOTHER_ZERO = 1.0
# Structures count as made of known elements if these are at least this share of the atoms.
ALL_ATOMS = 0.999
# An E0 is undetermined if its posterior is wider than this share of the free prior.
UNDETERMINED = 0.1
REWEIGHTINGS = 20
# Without held-out structures, the data are split into at most this many parts to leave out.
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
    held_out: structures that judge the fit. If none of them has an energy, parts of `structures`
        are left out in turn.

    The mean absolute error rises neither on `structures` nor on those that judge.
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
    judging = [structure for structure in held_out if structure.energy is not None]
    unseen = _energy_errors(potential, judging, elements) if judging else None

    another_zero = _has_another_zero(data.error, data.share, elements, known)
    if another_zero:
        known = set()
    fits = _fits(data, elements, known)
    chosen = _first_that_is_not_worse(fits, data, unseen, _parts(labelled))

    if chosen is None:
        shift = np.zeros(len(elements))
        # the matrix alone says how well the data determine each E0
        _, normal = fits[0].solve(data)
    else:
        shift, normal = chosen.solve(data)
    potential.e0[head, elements] += potential.e0.new_tensor(shift)

    # posterior standard deviation of each E0, eV
    widths = np.sqrt(np.diag(np.linalg.inv(normal)))
    shifts = {}
    undetermined = []
    for z, shift_of_element, width in zip(elements, shift, widths, strict=True):
        symbol = chemical_symbols[z]
        shifts[symbol] = float(shift_of_element)
        if width > UNDETERMINED * FREE_WIDTH:
            undetermined.append(symbol)

    residual = data.residual(shift)
    isolated_atoms = {}
    for row in np.flatnonzero(data.isolated):
        symbol = chemical_symbols[labelled[row].atomic_numbers[0]]
        isolated_atoms[symbol] = float(residual[row])
    return ReferenceReport(
        shifts=shifts,
        undetermined=undetermined,
        mae_before=float(np.abs(data.error).mean()),
        mae_after=float(np.abs(residual).mean()),
        another_zero=another_zero,
        narrowed=chosen is None or chosen.narrowed,
        isolated_atoms=isolated_atoms,
    )


@dataclass(frozen=True)
class _EnergyErrors:
    """What the potential gets wrong, and the compositions by which E0 may explain it."""

    error: np.ndarray
    """(S,) label minus prediction, eV/atom"""
    share: np.ndarray
    """(S, Z) share of each element among the atoms"""
    isolated: np.ndarray
    """(S,) whether the structure is a single atom without periodicity"""

    def residual(self, shift: np.ndarray) -> np.ndarray:
        """(S,) errors that remain after a change of E0 by `shift` (Z,)."""
        return self.error - self.share @ shift

    def mae(self, shift: np.ndarray) -> float:
        """Mean absolute error after a change of E0 by `shift` (Z,)."""
        return float(np.abs(self.residual(shift)).mean())

    def of(self, rows: np.ndarray) -> _EnergyErrors:
        """The errors of some structures: a mask (S,)."""
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

    def solve(self, data: _EnergyErrors) -> tuple[np.ndarray, np.ndarray]:
        """Shifts (Z,) by Huber's estimate, and the matrix (Z, Z) of the last weighted equations."""
        weight = np.ones(len(data.error))
        for _ in range(REWEIGHTINGS):
            weighted = data.share * weight[:, None] / ENERGY_NOISE**2
            normal = weighted.T @ data.share + np.diag(self.precision)
            shift = np.linalg.solve(normal, weighted.T @ data.error)

            distance = np.abs(data.residual(shift))
            # the noise may be larger than assumed: at least half of the structures count in full
            width = max(ENERGY_NOISE, float(np.median(distance)))
            weight = np.minimum(1.0, width / np.maximum(distance, 1e-12))
            if self.hold_isolated:
                weight[data.isolated] = 1.0
        return shift, normal


def _fits(data: _EnergyErrors, elements: np.ndarray, known: set[int]) -> list[_Fit]:
    """The fits that are tried, in the order of preference.

    One that holds isolated atoms comes right before the same fit without that.
    """
    precision = reference_precision(elements, known)
    fits = [_Fit(precision)]
    if data.isolated.any() and not data.isolated.all():
        fits.insert(0, _Fit(precision, hold_isolated=True))
    if np.median(np.abs(data.error)) > ANOTHER_ZERO:
        # E0 has to move by more than 1 eV: with a narrow prior it would stop halfway, and be wrong
        return fits

    is_narrowed = np.array([z in known for z in elements])
    if not is_narrowed.any():
        # At a new level of theory no E0 is known, but those of the head it started from are near.
        is_narrowed[:] = True
    for width in NARROWER_WIDTHS:
        fits.append(_Fit(np.where(is_narrowed, width**-2.0, precision), narrowed=True))
    return fits


def _first_that_is_not_worse(
    fits: list[_Fit],
    data: _EnergyErrors,
    unseen: _EnergyErrors | None,
    parts: list[np.ndarray],
) -> _Fit | None:
    """The first fit that raises neither the error on its data nor that on structures left out.

    None if every fit raises one of them. A fit that holds isolated atoms must also do at least as
    well on the structures left out as the same fit without that.
    """
    no_shift = np.zeros(data.share.shape[1])
    error_unchanged = _left_out_error(None, data, unseen, parts)
    for index, fit in enumerate(fits):
        shift, _ = fit.solve(data)
        if data.mae(shift) > data.mae(no_shift):
            continue
        error = _left_out_error(fit, data, unseen, parts)
        limit = error_unchanged
        if fit.hold_isolated:
            # the next one is the same without the hold, see `_fits`
            limit = min(limit, _left_out_error(fits[index + 1], data, unseen, parts))
        if error <= limit * (1 + ROUNDING):
            return fit
    return None


def _left_out_error(
    fit: _Fit | None, data: _EnergyErrors, unseen: _EnergyErrors | None, parts: list[np.ndarray]
) -> float:
    """Absolute error (eV/atom) on structures that the fit has not seen; `fit` None: no change.

    The mean over the held-out structures `unseen`, or else the sum over all parts, each left out
    in turn. Both serve for comparing fits only. Zero if nothing can be left out.
    """
    no_shift = np.zeros(data.share.shape[1])
    if unseen is not None:
        return unseen.mae(no_shift if fit is None else fit.solve(data)[0])
    if len(parts) < 2:
        return 0.0

    total = 0.0
    for part in parts:
        left_out = np.zeros(len(data.error), dtype=bool)
        left_out[part] = True
        shift = no_shift if fit is None else fit.solve(data.of(~left_out))[0]
        # isolated atoms do not judge: they say nothing about the rest, and would outweigh it
        judging = left_out & ~data.isolated
        total += float(np.abs(data.of(judging).residual(shift)).sum())
    return total


def _parts(structures: list[Structure]) -> list[np.ndarray]:
    """Indices of the structures in at most MAX_PARTS parts; copies stay in one part."""
    # the same object may be given twice
    places: dict[int, list[int]] = {}
    for index, structure in enumerate(structures):
        places.setdefault(id(structure), []).append(index)
    groups = [[places[id(one)].pop(0) for one in group] for group in alike(structures)]
    num_parts = min(MAX_PARTS, len(groups))
    parts = []
    for first in range(num_parts):
        indices = [index for group in groups[first::num_parts] for index in group]
        parts.append(np.array(indices))
    return parts


def _energy_errors(
    potential: Potential, structures: list[Structure], elements: np.ndarray
) -> _EnergyErrors:
    """What the potential gets wrong about the energies of labelled structures."""
    pairs = predict(potential, structures).energy  # (S, 2): label, prediction
    num_atoms = np.array([len(structure) for structure in structures])
    error = (pairs[:, 0] - pairs[:, 1]) / num_atoms
    isolated = [len(structure) == 1 and not structure.pbc.any() for structure in structures]
    return _EnergyErrors(error, _composition(structures, elements), np.array(isolated))


def _has_another_zero(
    error: np.ndarray, share: np.ndarray, elements: np.ndarray, known: set[int]
) -> bool:
    """Whether structures of known elements are further off than a model can be wrong."""
    is_known = [z in known for z in elements]
    of_known = share[:, is_known].sum(1) > ALL_ATOMS
    if not of_known.any():
        return False
    # the median, because a few structures may be off for other reasons
    return bool(abs(np.median(error[of_known])) > ANOTHER_ZERO)


def _composition(structures: list[Structure], elements: np.ndarray) -> np.ndarray:
    """The share of each element in the atoms of each structure, (S, Z)."""
    rows = []
    for structure in structures:
        shares = [(structure.atomic_numbers == z).mean() for z in elements]
        rows.append(shares)
    return np.stack(rows)
