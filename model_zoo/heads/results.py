"""What heads add to the results of an ASE calculator."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from ase import Atoms
from torch import Tensor

from .description import KINDS, HeadError
from .features import BatchFeatures
from .head import Head, net_charge, without_dipole
from .record import REMEDY


# entries that no periodic and no charged structure has
OF_MOLECULES = {"dipole", "dipole_std"}


def has_spread(column: str, head: Head) -> bool:
    """Whether an entry that a head fills has one beside it, the size of its errors."""
    # that of a dipole head is not that of the charges which it gives too
    return head.description.spread and column != "charges"


class ResultHeads:
    """Heads, each with the entries of `results` that it fills.

    A charge head fills ASE's `charges`. A dipole head fills `dipole`, and `charges` where there is
    no charge head: charges that were fitted to charges come first. Those of a dipole head with
    dipoles at the atoms are not the whole, and fill nothing. A polarizability is in
    `polarizability`, forces that are no derivatives in `direct_forces`. All others fill their own
    name. A head with a spread also fills its name with `_std` appended.
    """

    def __init__(self, heads: Iterable[Head]) -> None:
        """Raises HeadError where two heads would fill the same entry, and without any head."""
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
        """The entries for `atoms`, from the features of its atoms.

        Classes are an array (K,) of probabilities. The dipole is left out where there is none.

        Raises HeadError for elements that a head was fitted without.
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
        """All entries, with those of spreads."""
        found = []
        for column, head in self.columns.items():
            found.append(column)
            if has_spread(column, head):
                found.append(f"{column}_std")
        return found

    @property
    def charged_columns(self) -> set[str]:
        """Entries that depend on the net charge of a structure."""
        return {"charges", "dipole"} & set(self.columns)

    def is_of_atoms(self, column: str) -> bool:
        """Whether an entry has a row for each atom, and not one for each structure."""
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
        """The entries of S structures at once: (S, ...), or (N, ...) of their atoms.

        atomic_numbers (N,), positions (N, 3) in A, structure_index (N,) and net_charges (S,) in e,
        which alone decide where the answers lie. A dipole is there for every structure.

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
