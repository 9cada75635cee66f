"""EMT that writes down each time it is asked, and that fails at the times it is told to."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT


class OddOracle(EMT):
    """Appends a line to `log` for each structure; `faults` has the fault of each time, from 0."""

    def __init__(self, log: str, faults: dict[int, str] | None = None) -> None:
        super().__init__()
        self.log = Path(log)
        self.faults = {int(time_asked): fault for time_asked, fault in (faults or {}).items()}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        place = np.round(self.atoms.positions.sum(), 8)
        asked = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        with self.log.open("a") as file:
            file.write(f"{place}\n")
        fault = self.faults.get(asked)
        if fault == "hang":
            time.sleep(600)
        elif fault == "die":
            os._exit(3)
        elif fault == "slow":
            time.sleep(1.0)
        elif fault == "leave":
            sys.exit(0)
        elif fault == "raise":
            raise RuntimeError("did not converge in 60 cycles")
        elif fault == "nan":
            self.results["forces"] = self.results["forces"] * np.nan
        elif fault == "shape":
            self.results["forces"] = self.results["forces"][:-1]
