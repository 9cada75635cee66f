"""EMT that appends a line to a file for each structure that it is asked about."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class CountingEMT(EMT):
    """The line in `log` is a hash of the positions and the cell."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.log = Path(log)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Labels by EMT."""
        super().calculate(atoms, properties, system_changes)
        found = hashlib.sha256(self.atoms.positions.tobytes() + self.atoms.cell.array.tobytes())
        with self.log.open("a") as file:
            file.write(f"{found.hexdigest()}\n")
