"""A head: linear weights on atomic features, and how a property follows from them.

    y_i = weight . phi_i + bias[z_i]

    charges   q_i = y_i - mean(y) + Q / N        they add up to the net charge Q
    dipole    sum_i q_i (r_i - mean(r))          of a neutral structure, so any origin is the same
    scalar    mean_i y_i, or sum_i y_i where it is extensive
    class     softmax of mean_i y_i              one row of weights for each class
    atom_scalar   y_i
    states    eigenvalues of a matrix of sum_i y_i         one row for each entry: `states.py`

phi_i are features of the model's network, or of a copy that was trained on the labels of the head.
They are invariant. Charges, scalars and classes are therefore invariant too, and a dipole rotates
with the atoms. Vectors, tensors, pseudoscalars, direct forces, and dipoles with an atomic part are
linear in the rows of `rows.py`, whose columns rotate with the atoms.

A prediction may have a spread, the standard deviation of its error. For vectors and tensors, it is
the same for each component, so it is invariant. The logarithm of the variance is a mean over atoms,
with separate weights on the invariants (Nix and Weigend, ICNN 1994):

    u_i = weight' . phi_i + bias'[z_i]
    per structure   exp(mean_i u_i / 2), times sqrt(N) if the prediction is a sum
    per atom        exp(u_i / 2)

Shapes: N atoms, F features, K outputs, Z elements of the fit, P weights. K is the number of classes
or of matrix entries of states, else 1. P = F if the features are invariant.
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


# e; a smaller net charge counts as zero, because files round charges
NEUTRAL = 1e-6
LARGEST_ATOMIC_NUMBER = 118

Answer = float | np.ndarray | dict[str, float]


@dataclass(frozen=True)
class Head:
    """A head for one property: its description and its weights."""

    description: HeadDescription
    weight: np.ndarray
    """(K, P) in the unit of the head per unit of a feature."""
    bias: np.ndarray
    """(K, Z) for each element, in the order of `description.elements`."""
    expansion: Expansion | None = None
    """The random functions of equivariant features; None for invariant features."""
    spread_weight: np.ndarray | None = None
    """(F,); None if the description has no spread."""
    spread_bias: np.ndarray | None = None
    """(Z,); None if the description has no spread."""
    own: Potential | None = None
    """A copy of the model's potential whose network was trained for this head; None if the head
    uses the network of the model."""

    def require_kind(self, kind: str) -> None:
        """Raise HeadError unless the head predicts this kind of property."""
        if self.description.kind != kind:
            raise HeadError(
                f"{self.description.name} predicts a {self.description.kind}, and no {kind}",
                remedy=f"name a head of the kind {kind}, or fit one with head={kind}",
            )

    def predict(self, features: CarriedFeatures, atoms: Atoms) -> Answer:
        """Predict the property of `atoms` from their features, in the unit of the head.

        A property of the structure is a number, a dipole or vector (3,), a tensor (3, 3), the
        energies of states (K,), or class probabilities by name. A per-atom property has the shape
        (N,) for numbers and charges, (N, 3) for vectors and direct forces, or (N, 3, 3) for
        tensors. It is NaN for elements without a labelled atom in the fit.

        Raises HeadError for elements that the head was fitted without, and for the dipole of a
        periodic or charged structure.
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
        """Predictions for several structures: (S, ...), or (N, ...) for per-atom properties.

        Classes are given as probabilities (S, K), and states as energies (S, K). `places` (N,) are
        positions in the list of elements of the fit. `positions` (N, 3) in A and `net_charges` (S,)
        in e are float64. All tensors must be on the same device. The result is float64 and
        differentiable.
        """
        about = self.description
        numbers, turning = self.terms(features, places)
        found = combined(
            about.kind, self.is_sum, numbers, turning, positions, structure_index, net_charges
        )
        return self._spoken(found, places)

    def terms(self, features: CarriedFeatures, places: Tensor) -> tuple[Tensor, Tensor]:
        """The per-atom terms for `combined`: numbers (N, K), and the rotating part.

        The rotating part has the shape (N,), (N, 3) or (N, 3, 3). Both are float64, differentiable
        and independent of the positions.
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
        """Spreads for several structures: (S,), or (N,) for per-atom properties.

        Arguments are as in `answers`. Raises HeadError for a head without a spread.
        """
        log_variances = self.log_variances(features, places)
        is_of_atoms = self.description.per == "atom"
        found = combined_spread(
            is_of_atoms, self.is_sum, log_variances, structure_index, num_structures
        )
        return self._spoken(found, places)

    def log_variances(self, features: CarriedFeatures, places: Tensor) -> Tensor:
        """The log variances u (N,), float64. Raises HeadError for a head without a spread."""
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
        """Whether a prediction for a structure is a sum over its atoms rather than their mean."""
        return self.description.extensive or self.description.rank > 0

    def predict_spread(self, features: CarriedFeatures, atoms: Atoms) -> float | np.ndarray:
        """The standard deviation of the error of `predict`, in the same unit.

        It is a number, or (N,) for a per-atom property. For vectors and tensors, it is the standard
        deviation of each component. Raises HeadError for a head without a spread, and the errors of
        `predict`.
        """
        if self.description.kind == "dipole":
            self.refuse_without_dipole(atoms)
        places, _, structure_index = self._alone(atoms)
        found = self.spreads(features.cpu(), places, structure_index, 1)
        return found.numpy() if self.description.per == "atom" else float(found[0])

    def _alone(self, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments places, positions and structure_index for a single structure."""
        places = torch.as_tensor(self.places(atoms.numbers))
        return places, torch.tensor(atoms.positions), torch.zeros_like(places)

    def _spoken(self, answer: Tensor, places: Tensor) -> Tensor:
        """The prediction, with NaN for atoms of elements without labels in the fit."""
        silent = self.silent_places
        if not silent:
            return answer
        is_silent = torch.isin(places, places.new_tensor(silent))
        is_silent = is_silent.reshape(-1, *[1] * (answer.ndim - 1))
        return answer.masked_fill(is_silent, torch.nan)

    @property
    def silent_places(self) -> list[int]:
        """Positions, in the list of elements of the fit, of elements without labels."""
        about = self.description
        return [about.elements.index(symbol) for symbol in about.silent_elements]

    @property
    def has_charges(self) -> bool:
        """Whether the property follows from charges alone, which can then be reported too."""
        return self.description.kind in ("charges", "dipole") and self.expansion is None

    def charges(self, features: np.ndarray, atoms: Atoms) -> np.ndarray:
        """Charges (N,) in e from invariants (N, F). They sum to `net_charge(atoms)`."""
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
        """The charges (N,) in e for several structures. The head must have charges.

        Arguments are as in `answers`.
        """
        numbers, turning = self.terms(features, places)
        return combined("charges", False, numbers, turning, positions, structure_index, net_charges)

    def refuse_without_dipole(self, atoms: Atoms) -> None:
        """Raise HeadError for a structure whose dipole moment is not defined."""
        reason = without_dipole(atoms)
        if reason is not None:
            remedy = "ask for charges only" if self.has_charges else "take a neutral molecule"
            raise HeadError(f"{self.description.name}: {reason}", remedy=remedy)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Positions (N,) of atomic numbers (N,) in the list of elements of the fit.

        Raises HeadError for other elements.
        """
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
    """Net charge of a structure in e: `info["charge"]`, or 0 if it is not stated.

    Raises HeadError if it is not a finite number.
    """
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
    """The reason why the dipole moment of a structure is not defined; None if it is."""
    if atoms.pbc.any():
        return "a periodic structure has no dipole moment of its own: it depends on the cell"
    charge = net_charge(atoms)
    if abs(charge) > NEUTRAL:
        return f"the dipole moment of a net charge of {charge:g} e depends on the origin"
    return None
