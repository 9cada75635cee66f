"""The entries that heads add to the results of an ASE calculator."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from ase import Atoms
from torch import Tensor

from .description import KINDS, HeadError
from .features import BatchFeatures
from .head import Head, net_charge, without_dipole
from .record import REMEDY


# entries that periodic and charged structures do not have
OF_MOLECULES = {"dipole", "dipole_std"}


def has_spread(column: str, head: Head) -> bool:
    """Whether an entry has a second entry with its spread, `COLUMN_std`."""
    # the spread of a dipole head does not apply to its charges
    return head.description.spread and column != "charges"


class ResultHeads:
    """Heads and the entries of `results` that they fill.

    A charge head fills ASE's `charges`. A dipole head fills `dipole`, and also `charges` if there
    is no charge head. The charges of a dipole head with atomic dipoles are not reported, because
    they are only a part of its dipole. A polarizability head fills `polarizability`, and a head for
    direct forces fills `direct_forces`. All other heads fill an entry under their own name. A head
    with a spread also fills the entry with `_std` appended.
    """

    def __init__(self, heads: Iterable[Head]) -> None:
        """Assign entries to heads.

        Raises HeadError if two heads would fill the same entry, and without any head.
        """
        self.columns: dict[str, Head] = {}
        chosen = list(heads)
        if not chosen:
            raise HeadError("the model has no heads with its weights", remedy=REMEDY)
        for head in chosen:
            main = (KINDS[head.description.kind].columns or (head.description.name,))[0]
            self._claim(main, head)
        for head in chosen:
            for column in KINDS[head.description.kind].columns[1:]:
                if head.has_charges:
                    self.columns.setdefault(column, head)
        for column, head in list(self.columns.items()):
            if has_spread(column, head) and f"{column}_std" in self.columns:
                self._claim(f"{column}_std", head)

    def _claim(self, column: str, head: Head) -> None:
        other = self.columns.get(column)
        if other is not None:
            names = f"{other.description.name} and {head.description.name}"
            raise HeadError(
                f"the heads {names} both give {column}",
                remedy=f'name those to use, as in heads=["{head.description.name}"]',
            )
        self.columns[column] = head

    def results(self, features: BatchFeatures, atoms: Atoms) -> dict[str, object]:
        """The entries for one structure. `features` must belong to the same atoms.

        Classes are given as an array (K,) of probabilities. The dipole is left out if it is not
        defined. Raises HeadError for elements that a head was fitted without.
        """
        numbers = torch.as_tensor(atoms.numbers)
        charge = net_charge(atoms) if self.charged_columns else 0.0
        answers = self.answers(
            features,
            numbers,
            torch.tensor(atoms.positions),
            torch.zeros_like(numbers),
            torch.tensor([charge]).double(),
        )
        has_dipole = not OF_MOLECULES & set(answers) or without_dipole(atoms) is None
        found: dict[str, object] = {}
        for column, answer in answers.items():
            if column in OF_MOLECULES and not has_dipole:
                continue
            own = answer if self.is_of_atoms(column) else answer[0]
            found[column] = own.cpu().numpy() if own.ndim else float(own)
        return found

    @property
    def names(self) -> list[str]:
        """The names of all entries, including spreads."""
        found = []
        for column, head in self.columns.items():
            found.append(column)
            if has_spread(column, head):
                found.append(f"{column}_std")
        return found

    @property
    def charged_columns(self) -> set[str]:
        """The entries that depend on the net charge of a structure."""
        return {"charges", "dipole"} & set(self.columns)

    def is_of_atoms(self, column: str) -> bool:
        """Whether an entry has one row per atom rather than per structure."""
        return column == "charges" or self.head_of(column).description.per == "atom"

    def head_of(self, column: str) -> Head:
        """The head that fills an entry."""
        return self.columns.get(column) or self.columns[column.removesuffix("_std")]

    def answers(
        self,
        features: BatchFeatures,
        atomic_numbers: Tensor,
        positions: Tensor,
        structure_index: Tensor,
        net_charges: Tensor,
    ) -> dict[str, Tensor]:
        """The entries for S structures at once: (S, ...), or (N, ...) for per-atom properties.

        `atomic_numbers` and `structure_index` are (N,), `positions` (N, 3) in A, `net_charges` (S,)
        in e. The results are on the device of `positions`. The dipole is given for every structure,
        even if it is not defined.

        Raises HeadError for elements that a head was fitted without.
        """
        place = positions.device
        known = atomic_numbers.cpu().numpy()
        found: dict[str, Tensor] = {}
        for column, head in self.columns.items():
            places = torch.as_tensor(head.places(known), device=place)
            own = features.of(head).to(place)
            answers = head.charge_answers if column == "charges" else head.answers
            found[column] = answers(own, places, positions, structure_index, net_charges)
            if has_spread(column, head):
                spreads = head.spreads(own, places, structure_index, len(net_charges))
                found[f"{column}_std"] = spreads
        return found
