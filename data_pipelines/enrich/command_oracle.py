"""An oracle that runs a shell command, which reads a structure from a file and writes its labels.

    oracle=command oracle_settings.command="python my_dft.py {input} {output}"

{input} is an extxyz file with one structure. {output} must be a file with the same structure, its
energy (eV), forces (eV/A) and optionally stress (eV/A^3), in any format from which ASE reads them.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.geometry import find_mic

from ..demo.oracles import OracleError


INPUT = "{input}"
OUTPUT = "{output}"
# A; a program may round positions and cell vectors by this much; a relaxation step is larger
MOVED = 1e-3
# characters shown of the last line of a failed program's output
MOST_CHARACTERS = 200


class CommandOracle(Calculator):
    """Runs the command in a shell for each structure, and waits for it to finish."""

    name = "command"
    # ASE expects a list here
    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, command: str) -> None:
        """Raises OracleError if the command is not a string or lacks {input} or {output}."""
        super().__init__()
        if not isinstance(command, str):
            raise OracleError(
                f"oracle_settings.command={command!r} is no command",
                remedy=f"write a line of a shell with {INPUT} and {OUTPUT}",
            )
        missing = [place for place in (INPUT, OUTPUT) if place not in command]
        if missing:
            raise OracleError(
                f"oracle_settings.command={command!r} does not name {' and '.join(missing)}",
                remedy=f"write {INPUT} and {OUTPUT} where the names of the files go",
            )
        self.command = command

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Run the command and fill `results`.

        Raises CalculationFailed with the last line of the program's output if it fails, or with the
        reason why its result cannot be used.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        with tempfile.TemporaryDirectory(prefix="evenfield-oracle-") as folder:
            before = Path(folder) / "input.extxyz"
            after = Path(folder) / "output.extxyz"
            bare = Atoms(
                self.atoms.numbers, self.atoms.positions, cell=self.atoms.cell, pbc=self.atoms.pbc
            )
            ase.io.write(before, bare)
            words = self.command.replace(INPUT, shlex.quote(str(before)))
            words = words.replace(OUTPUT, shlex.quote(str(after)))
            # a shell, because the command may use pipes, variables and modules
            done = subprocess.run(
                words, shell=True, capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode:
                lines = (
                    done.stderr.strip() or done.stdout.strip() or "it said nothing"
                ).splitlines()
                raise CalculationFailed(
                    f"exit code {done.returncode}: {lines[-1][:MOST_CHARACTERS]}"
                )
            if not after.exists():
                raise CalculationFailed("the command wrote no output file")
            labelled: Atoms = ase.io.read(after)  # type: ignore[assignment]
        self.results = self._checked(labelled)
        # which properties a program computes is known only after it has run
        self.implemented_properties = list(self.results)

    def _checked(self, labelled: Atoms) -> dict[str, float | np.ndarray]:
        """The labels. Raises CalculationFailed if they are not those of the given structure."""
        assert self.atoms is not None
        if len(labelled) != len(self.atoms):
            raise CalculationFailed(
                f"the output has {len(labelled)} atoms instead of {len(self.atoms)}"
            )
        if not np.array_equal(labelled.numbers, self.atoms.numbers):
            raise CalculationFailed("the output has the atoms in another order")
        if not np.array_equal(labelled.pbc, self.atoms.pbc):
            raise CalculationFailed(
                f"the output is periodic along {labelled.pbc.tolist()} instead of "
                f"{self.atoms.pbc.tolist()}"
            )
        # along non-periodic directions, programs may write any box or none
        periodic = self.atoms.pbc
        strained = np.abs(labelled.cell.array - self.atoms.cell.array)[periodic]
        if not strained.max(initial=0.0) <= MOVED:
            raise CalculationFailed(
                f"the output has another cell: a vector differs by {strained.max():.3g} A"
            )
        moved = labelled.positions - self.atoms.positions
        _, lengths = find_mic(moved, self.atoms.cell, self.atoms.pbc)
        if not lengths.max(initial=0.0) <= MOVED:
            worst = int(np.argmax(lengths))
            raise CalculationFailed(
                f"the output has the atoms in another order, or moved: atom {worst} is "
                f"{lengths[worst]:.2f} A from where it was"
            )
        found = {} if labelled.calc is None else labelled.calc.results
        missing = [name for name in ("energy", "forces") if name not in found]
        if missing:
            raise CalculationFailed(f"the output has no {' and no '.join(missing)}")
        return {name: found[name] for name in self.implemented_properties if name in found}
