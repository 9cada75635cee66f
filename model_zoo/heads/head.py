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

An answer may come with a spread, the standard deviation of its error, or of each component of that
alike: then it turns with nothing. Its logarithm is a mean over the atoms with weights of its own on
the invariants (Nix and Weigend, ICNN 1994):

    u_i = weight' . phi_i + bias'[z_i]
    of structures   exp(mean_i u_i / 2), sqrt(N) times that where the answer is a sum
    of atoms        exp(u_i / 2)

Shapes: N atoms, F features, K outputs (classes, else 1), Z elements of the fit, P weights: F where
the features are invariant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from ..network.interface import CarriedFeatures
from ..potential.potential import Potential
from .combined import combined, combined_spread
from .description import HeadDescription, HeadError
from .expansion import Expansion
from .rows import parts_of_atoms


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
        about = self.description
        if about.kind == "dipole":
            self.refuse_without_dipole(atoms)
        charge = net_charge(atoms) if about.kind == "charges" else 0.0
        answers = self.answers(features.cpu(), *self._alone(atoms), torch.tensor([charge]).double())
        answer = answers if about.per == "atom" else answers[0]
        if about.kind == "class":
            return dict(zip(about.classes, answer.tolist(), strict=True))
        found: np.ndarray = answer.numpy()
        return found if found.ndim else float(found)

    def answers(
        self,
        features: CarriedFeatures,
        places: Tensor,
        positions: Tensor,
        structure_index: Tensor,
        net_charges: Tensor,
    ) -> Tensor:
        """What `predict` says, of several structures: (S, ...), or (N, ...) of their atoms.

        Classes are their probabilities (S, K), and states their energies (S, K). places (N,) are
        those of the elements in the fit, positions (N, 3) in A and net_charges (S,) in e are in
        float64, all on one device. The answer is in float64 and differentiable.
        """
        about = self.description
        numbers, turning = self.terms(features, places)
        found = combined(
            about.kind, self.is_sum, numbers, turning, positions, structure_index, net_charges
        )
        return self._spoken(found, places)

    def terms(self, features: CarriedFeatures, places: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (N, K) of the atoms and what turns, (N,), (N, 3) or (N, 3, 3), for `combined`.

        In float64 and differentiable; positions play no part.
        """
        about = self.description
        of_atoms, turning = parts_of_atoms(about.kind, features, self.expansion, places)
        num_invariant = of_atoms.shape[1]
        weight = of_atoms.new_tensor(self.weight)
        bias = of_atoms.new_tensor(self.bias)
        numbers = of_atoms @ weight[:, :num_invariant].T + bias.T[places]
        return numbers, turning @ weight[0, num_invariant:]

    def spreads(
        self,
        features: CarriedFeatures,
        places: Tensor,
        structure_index: Tensor,
        num_structures: int,
    ) -> Tensor:
        """What `predict_spread` says, of several structures: (S,), or (N,) of their atoms.

        Raises HeadError for a head without a spread.
        """
        log_variances = self.log_variances(features, places)
        is_of_atoms = self.description.per == "atom"
        found = combined_spread(
            is_of_atoms, self.is_sum, log_variances, structure_index, num_structures
        )
        return self._spoken(found, places)

    def log_variances(self, features: CarriedFeatures, places: Tensor) -> Tensor:
        """u (N,) of the atoms in float64. Raises HeadError for a head without a spread."""
        if self.spread_weight is None or self.spread_bias is None:
            raise HeadError(
                f"{self.description.name} does not say how large its errors are",
                remedy="fit it again with spread=true",
            )
        invariants = features.invariants.double()
        weight = invariants.new_tensor(self.spread_weight)
        return invariants @ weight + invariants.new_tensor(self.spread_bias)[places]

    @property
    def is_sum(self) -> bool:
        """Whether the answer of a structure is a sum over its atoms, and not their mean."""
        return self.description.extensive or self.description.rank > 0

    def predict_spread(self, features: CarriedFeatures, atoms: Atoms) -> float | np.ndarray:
        """The standard deviation of the error of `predict`, a number or (N,), in the same unit.

        Of vectors and tensors it is that of each component. Raises HeadError for a head without
        one, for elements that the fit has not seen, and where `predict` has no dipole.
        """
        if self.description.kind == "dipole":
            self.refuse_without_dipole(atoms)
        places, _, structure_index = self._alone(atoms)
        found = self.spreads(features.cpu(), places, structure_index, 1)
        return found.numpy() if self.description.per == "atom" else float(found[0])

    def _alone(self, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
        """Places, positions and structure_index of one structure."""
        places = torch.as_tensor(self.places(atoms.numbers))
        return places, torch.tensor(atoms.positions), torch.zeros_like(places)

    def _spoken(self, answer: Tensor, places: Tensor) -> Tensor:
        """An answer, with NaN for the atoms of which the fit had no label."""
        silent = self.silent_places
        if not silent:
            return answer
        is_silent = torch.isin(places, places.new_tensor(silent))
        is_silent = is_silent.reshape(-1, *[1] * (answer.ndim - 1))
        return answer.masked_fill(is_silent, torch.nan)

    @property
    def silent_places(self) -> list[int]:
        """Places among the elements of the fit of those without a label."""
        about = self.description
        return [about.elements.index(symbol) for symbol in about.silent_elements]

    @property
    def has_charges(self) -> bool:
        """Whether the property is made of charges alone, which then have a meaning of their own."""
        return self.description.kind in ("charges", "dipole") and self.expansion is None

    def charges(self, features: np.ndarray, atoms: Atoms) -> np.ndarray:
        """Charges (N,) in e from invariants (N, F); they add up to `net_charge(atoms)`."""
        own = CarriedFeatures.of_invariants(torch.as_tensor(features))
        charge = torch.tensor([net_charge(atoms)]).double()
        found: np.ndarray = self.charge_answers(own, *self._alone(atoms), charge).numpy()
        return found

    def charge_answers(
        self,
        features: CarriedFeatures,
        places: Tensor,
        positions: Tensor,
        structure_index: Tensor,
        net_charges: Tensor,
    ) -> Tensor:
        """The charges (N,) of several structures, by a head that `has_charges`."""
        numbers, turning = self.terms(features, places)
        return combined("charges", False, numbers, turning, positions, structure_index, net_charges)

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
