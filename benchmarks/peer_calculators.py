"""Pretrained potentials of others as calculators of ASE, each for its own virtual environment.

`pretrained_peers.py` asks for them by the name of a function here; `evenfield check sanity
--calculator peer_calculators:chgnet` takes them too, with this folder on PYTHONPATH. A calculator
is made once a process, since a check may ask for it for every element.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


# Space around a molecule in the box that CHGNet needs, A: more than twice its cutoff of 6 A.
VACUUM = 15.0


@cache
def chgnet() -> Calculator:
    """CHGNet 0.3.0, the default of its package."""
    from chgnet.model.dynamics import CHGNetCalculator

    class Boxed(CHGNetCalculator):
        """It takes crystals only, so anything else goes into a box. It also gives site energies."""

        implemented_properties = (*CHGNetCalculator.implemented_properties, "energies")

        def calculate(
            self,
            atoms: Atoms | None = None,
            properties: list[str] | None = None,
            system_changes: list[str] | None = None,
        ) -> None:
            boxed = in_box(atoms)
            super().calculate(boxed, properties, system_changes or all_changes)
            if "energies" in (properties or ()):
                self.results["energies"] = self._site_energies(boxed)
            # ASE compares these with the next structure
            self.atoms = atoms.copy()

        def _site_energies(self, atoms: Atoms) -> np.ndarray:
            from pymatgen.io.ase import AseAtomsAdaptor

            graph = self.model.graph_converter(AseAtomsAdaptor.get_structure(atoms))
            found = self.model.predict_graph(graph, task="e", return_site_energies=True)
            return np.asarray(found["site_energies"], float)

    return Boxed(use_device="cpu", on_isolated_atoms="ignore")


@cache
def sevennet_0() -> Calculator:
    """SevenNet-0 of 11 July 2024."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


def in_box(atoms: Atoms) -> Atoms:
    """The same atoms, periodic in all directions, with vacuum where they were not."""
    if atoms.pbc.all():
        return atoms
    boxed = atoms.copy()
    for axis in np.flatnonzero(~atoms.pbc):
        boxed.center(vacuum=VACUUM / 2, axis=int(axis))
    boxed.pbc = True
    return boxed


def versions(packages: tuple[str, ...] = ("chgnet", "sevenn", "evenfield", "torch")) -> Any:
    """Package -> version, of those that this environment has."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
