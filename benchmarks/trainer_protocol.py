"""What the trainers of equal_seconds.py share: a clock, the test, and the time of inference.

A trainer reads its settings from a JSON file and trains for a number of processor seconds. Then it
tests and times its model through the package's own calculator for ASE, and prints one line of JSON.
So all packages are tested and timed by the same code. This file runs in the virtual environments of
all of them, some of which have no torch, so it imports nothing but numpy and ASE.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator


# Training steps that are not timed: a compiler meets the first sizes of batches in them.
WARM_UP = 10
# Atoms that inference is timed with.
SIZES = (64, 512)
# Calls of inference that are not timed: a compiler meets the size in them.
CALLS = 3
# Timed calls of each size.
ROUNDS = 7
# A, standard deviation of the moves between calls: no call may repeat the positions of another.
RATTLE = 0.01


class Answer:
    """The standard output, kept for the answer of this process: one line of JSON.

    Once this is made, whatever else is printed goes to stderr. So it is made before the import of a
    package that prints.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def give(self, row: dict[str, Any]) -> None:
        """Print the answer."""
        print(json.dumps(row), file=self._stream, flush=True)


class Clock:
    """Processor seconds of the steps of training, until `budget` is spent.

    Steps that may compile, such as the first `warm_up`, count as the mean of the others. The caller
    reports the end of each step (`step`), and of anything that does not count (`go_on`).
    """

    def __init__(self, budget: float, warm_up: int = WARM_UP) -> None:
        self.budget = budget
        self.warm_up = warm_up
        self.steps = 0
        self._measured_steps = 0
        self._measured = 0.0
        self._since = time.process_time()

    @property
    def seconds(self) -> float:
        """Processor seconds of all steps so far; 0 until one was measured."""
        return self._measured * self.steps / max(1, self._measured_steps)

    def step(self, compiled: bool = False) -> None:
        """A step of training ends here. compiled: its time is not typical, and is not measured."""
        now = time.process_time()
        self.steps += 1
        if self.steps > self.warm_up and not compiled:
            self._measured += now - self._since
            self._measured_steps += 1
        self._since = now

    def go_on(self) -> None:
        """Go on counting here; what happened since the last step, such as a validation, is free."""
        self._since = time.process_time()

    @property
    def share(self) -> float:
        """The share of the budget that is spent, 0 to 1."""
        return min(1.0, self.seconds / self.budget)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.seconds >= self.budget

    def cosine(self) -> float:
        """A factor for the learning rate: half a cosine that falls from 1 to 0 over the budget."""
        return 0.5 * (1 + math.cos(math.pi * self.share))

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Batches of pass after pass, until the budget is spent; each batch counts as one step."""
        self.go_on()
        while True:
            for batch in loader:
                yield batch
                self.step()
                if self.is_over:
                    return

    def report(self, batch_size: int) -> dict[str, float]:
        """The part of a row about the training: processor seconds, steps and structures seen."""
        return {
            "seconds": self.seconds,
            "steps": self.steps,
            "structures": self.steps * batch_size,
        }


def read_settings() -> dict[str, Any]:
    """The content of the file that the command line names."""
    return json.loads(Path(sys.argv[1]).read_text())


def predict(calculator: Calculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy in eV and forces (N, 3) in eV/A."""
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    return calculator.results["energy"], calculator.results["forces"]


def with_labels(path: str) -> list[Atoms]:
    """Structures of a file whose REF_ labels are where ASE looks for energies and forces."""
    structures = ase.io.read(path, ":")
    for atoms in structures:
        energy = atoms.info.pop("REF_energy")
        forces = atoms.arrays.pop("REF_forces")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return structures


def write_labelled(source: str, path: Path) -> None:
    """Write the structures of a file to another, with their labels where ASE looks for them."""
    ase.io.write(path, with_labels(source), format="extxyz")


def test_errors(calculator: Calculator, path: str) -> dict[str, float]:
    """Mean absolute errors of energies (eV/atom) and components of forces (eV/A)."""
    energy_errors = []
    force_errors = []
    for atoms in ase.io.read(path, ":"):
        energy, forces = predict(calculator, atoms)
        energy_errors.append(abs(float(energy) - atoms.info["REF_energy"]) / len(atoms))
        force_errors.append(np.abs(forces - atoms.arrays["REF_forces"]).ravel())
    return {
        "energy_mae_per_atom": float(np.mean(energy_errors)),
        "force_mae": float(np.concatenate(force_errors).mean()),
    }


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks, as our training loop does; the peers gain from it as well."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def inference_time(calculator: Calculator, path: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Processor microseconds per atom for energy and forces, neighbour list included.

    Returns number of atoms, as text for JSON -> median over rounds. The atoms move before every
    call, so no calculator can return the result of an earlier one.
    """
    keep_freed_memory()
    rng = np.random.default_rng(0)
    medians = {}
    for structure in ase.io.read(path, ":"):
        seconds = []
        for _ in range(CALLS + rounds):
            atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
            atoms.positions += rng.normal(0, RATTLE, atoms.positions.shape)
            started = time.process_time()
            predict(calculator, atoms)
            seconds.append(time.process_time() - started)
        medians[str(len(structure))] = 1e6 * statistics.median(seconds[CALLS:]) / len(structure)
    return medians


def measure(calculator: Calculator, settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a row about the trained model: test errors and the time of inference.

    settings: has the files `test` and `inference`.
    """
    row: dict[str, Any] = dict(test_errors(calculator, settings["test"]))
    row["microseconds_per_atom"] = inference_time(calculator, settings["inference"])
    return row


def versions(*packages: str) -> dict[str, str]:
    """Package -> version, for the row."""
    return {name: version(name) for name in packages}
