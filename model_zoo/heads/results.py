"""What heads add to the results of an ASE calculator."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase import Atoms

from .description import KINDS, HeadError
from .features import BatchFeatures
from .head import Head, without_dipole
from .record import REMEDY


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
            if head.description.spread and f"{column}_std" in self.columns:
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
        found: dict[str, object] = {}
        for column, head in self.columns.items():
            own = features.of(head)
            if column == "charges":
                invariants = own.invariants.double().cpu().numpy()
                found[column] = head.charges(invariants, atoms)
                continue
            if column == "dipole" and without_dipole(atoms) is not None:
                continue
            answer = head.predict(own, atoms)
            if isinstance(answer, dict):
                answer = np.array(list(answer.values()))
            found[column] = answer
            if head.description.spread:
                found[f"{column}_std"] = head.predict_spread(own, atoms)
        return found
