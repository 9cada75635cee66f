"""A head: linear weights on the features of atoms, and how a property follows from them.

    y_i = weight . phi_i + bias[z_i]

    charges   q_i = y_i - mean(y) + Q / N        they add up to the net charge Q
    dipole    sum_i q_i (r_i - mean(r))          of a neutral structure, so any origin is the same
    scalar    mean_i y_i, or sum_i y_i where it is extensive
    class     softmax of mean_i y_i              one row of weights for each class
    atom_scalar   y_i
    states    eigenvalues of a matrix of sum_i y_i         one row for each entry: `states.py`

phi_i are features of the network of the model, or of a copy that was trained on the labels of the
head. They are invariant, so charges, scalars and classes are, and a dipole turns with the atoms.
Vectors, tensors, pseudoscalars, direct forces and dipoles with a part at each atom are linear in
the rows of `rows.py`, whose columns turn with the atoms themselves.

A scalar may come with a spread, the standard deviation of its error. Its logarithm is a mean over
the atoms with weights of its own (Nix and Weigend, ICNN 1994):

    u_i = weight' . phi_i + bias'[z_i]
    scalar        exp(mean_i u_i / 2), sqrt(N) times that where it is extensive
    atom_scalar   exp(u_i / 2)

Shapes: N atoms, F features, K outputs (classes, else 1), Z elements of the fit, P weights: F where
the features are invariant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from scipy.special import softmax
from torch import Tensor

from ..network.interface import CarriedFeatures
from ..potential.potential import Potential
from .description import HeadDescription, HeadError
from .expansion import Expansion
from .rows import rows_of
from .symmetric import symmetric


# e; a net charge that a file states with fewer digits is still none
NEUTRAL = 1e-6
LARGEST_ATOMIC_NUMBER = 118

Answer = float | np.ndarray | dict[str, float]


@dataclass(frozen=True)
class Head:
    """One property of a model: what it is, and its weights."""

    description: HeadDescription
    weight: np.ndarray
    """(K, P) in units of the head per unit of a feature."""
    bias: np.ndarray
    """(K, Z) of each element, in the order of `description.elements`."""
    expansion: Expansion | None = None
    """The random functions among equivariant features; None for others."""
    spread_weight: np.ndarray | None = None
    """(F,), and None where the description has no spread."""
    spread_bias: np.ndarray | None = None
    """(Z,)"""
    own: Potential | None = None
    """A copy of the potential of the model, with a network that was trained for this head."""

    def require_kind(self, kind: str) -> None:
        """Raise HeadError unless the head predicts this kind of property."""
        if self.description.kind != kind:
            raise HeadError(
                f"{self.description.name} predicts a {self.description.kind}, and no {kind}",
                remedy=f"name a head of the kind {kind}, or fit one with head={kind}",
            )

    def predict(self, features: CarriedFeatures, atoms: Atoms) -> Answer:
        """Features of `atoms` -> the property of the head, in its unit.

        charges (N,), a dipole or vector (3,), a tensor (3, 3), a number, or the probability of each
        class by its name; of the atoms numbers (N,), vectors or direct forces (N, 3), or tensors
        (N, 3, 3), NaN for elements without a labelled atom in the fit.

        Raises HeadError for elements that the fit has not seen, and for the dipole of a structure
        that is periodic or charged.
        """
        kind = self.description.kind
        features = features.cpu()
        invariants = features.invariants.double().numpy()
        if kind == "charges":
            return self.charges(invariants, atoms)
        if kind == "dipole":
            self.refuse_without_dipole(atoms)
        if kind == "dipole" or self.expansion is not None:
            places = torch.as_tensor(self.places(atoms.numbers))
            positions = torch.as_tensor(atoms.positions)
            answer: np.ndarray = self.response(features, places, positions).numpy()
            return self._spoken(answer, atoms) if answer.ndim else float(answer)

        if kind == "states":
            places = torch.as_tensor(self.places(atoms.numbers))
            matrix = symmetric(self.matrix_entries(features.invariants, places))
            energies: np.ndarray = torch.linalg.eigvalsh(matrix).numpy()
            return energies

        values = self.atom_values(invariants, atoms.numbers)
        if kind == "atom_scalar":
            return self._spoken(values[:, 0], atoms)
        if kind == "scalar":
            total = values.sum() if self.description.extensive else values.mean()
            return float(total)
        probabilities = softmax(values.mean(axis=0))
        return dict(zip(self.description.classes, probabilities.tolist(), strict=True))

    def matrix_entries(self, invariants: Tensor, places: Tensor) -> Tensor:
        """Entries (M,) of the matrix of states in eV, in float64, differentiable.

        invariants (N, F), places (N,) of the elements in the fit.
        """
        features = invariants.double()
        of_atoms = features @ features.new_tensor(self.weight).T
        return (of_atoms + features.new_tensor(self.bias).T[places]).sum(0)

    def predict_spread(self, features: CarriedFeatures, atoms: Atoms) -> float | np.ndarray:
        """The standard deviation of the error of `predict`, a number or (N,), in the same unit.

        Raises HeadError for a head without one, and for elements that the fit has not seen.
        """
        if self.spread_weight is None or self.spread_bias is None:
            raise HeadError(
                f"{self.description.name} does not say how large its errors are",
                remedy="fit it again with spread=true",
            )
        invariants = features.cpu().invariants.double().numpy()
        log_variance = invariants @ self.spread_weight
        log_variance += self.spread_bias[self.places(atoms.numbers)]
        if self.description.per == "atom":
            return self._spoken(np.exp(0.5 * log_variance), atoms)
        spread = float(np.exp(0.5 * log_variance.mean()))
        return spread * len(atoms) ** 0.5 if self.description.extensive else spread

    def _spoken(self, answer: np.ndarray, atoms: Atoms) -> np.ndarray:
        """An answer, with NaN for the atoms of which the fit had no label."""
        silent = self.description.silent_elements
        if silent:
            answer[np.isin(atoms.numbers, [atomic_numbers[symbol] for symbol in silent])] = np.nan
        return answer

    def response(self, features: CarriedFeatures, places: Tensor, positions: Tensor) -> Tensor:
        """A dipole (3,), vector (3,), tensor (3, 3) or pseudoscalar (), differentiable.

        Of the atoms vectors (N, 3) and tensors (N, 3, 3).

        places (N,) are those of the elements in the fit, positions (N, 3) in A are in float64, all
        on one device. The answer is in float64.
        """
        about = self.description
        rows = rows_of(
            about.kind,
            features,
            self.expansion,
            places,
            positions,
            len(about.elements),
            extensive=about.extensive or about.rank > 0,
        )
        return rows @ rows.new_tensor(np.concatenate([self.weight[0], self.bias[0]]))

    def atom_values(self, features: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Features (N, F), atomic numbers (N,) -> y (N, K)."""
        places = self.places(numbers)
        return features @ self.weight.T + self.bias.T[places]

    @property
    def has_charges(self) -> bool:
        """Whether the property is made of charges alone, which then have a meaning of their own."""
        return self.description.kind in ("charges", "dipole") and self.expansion is None

    def charges(self, features: np.ndarray, atoms: Atoms) -> np.ndarray:
        """Charges (N,) in e from invariants (N, F); they add up to `net_charge(atoms)`."""
        raw = self.atom_values(features, atoms.numbers)[:, 0]
        return raw - raw.mean() + net_charge(atoms) / len(atoms)

    def refuse_without_dipole(self, atoms: Atoms) -> None:
        """Raise HeadError for a structure that has no dipole moment of its own."""
        reason = without_dipole(atoms)
        if reason is not None:
            remedy = "ask for charges only" if self.has_charges else "take a neutral molecule"
            raise HeadError(f"{self.description.name}: {reason}", remedy=remedy)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Places (N,) of atomic numbers among the elements of the fit; HeadError for others."""
        place = np.full(LARGEST_ATOMIC_NUMBER + 1, -1)
        known = [atomic_numbers[symbol] for symbol in self.description.elements]
        place[known] = np.arange(len(known))
        found = place[numbers]
        if (found < 0).any():
            unseen = sorted({chemical_symbols[z] for z in numbers[found < 0]})
            raise HeadError(
                f"{self.description.name} was fitted without {', '.join(unseen)}",
                remedy=f"it knows {', '.join(self.description.elements)}",
            )
        return found


def net_charge(atoms: Atoms) -> float:
    """Net charge of a structure in e: `info["charge"]`, and 0 where nothing is stated."""
    stated = atoms.info.get("charge", 0.0)
    try:
        charge = float(stated)
    except (TypeError, ValueError):
        charge = np.nan
    if not np.isfinite(charge):
        raise HeadError(
            f"has the net charge info['charge'] = {str(stated)[:40]!r}", remedy="give a number in e"
        )
    return charge


def without_dipole(atoms: Atoms) -> str | None:
    """Why a structure has no dipole moment of its own; None if it has one."""
    if atoms.pbc.any():
        return "a periodic structure has no dipole moment of its own: it depends on the cell"
    charge = net_charge(atoms)
    if abs(charge) > NEUTRAL:
        return f"the dipole moment of a net charge of {charge:g} e depends on the origin"
    return None
