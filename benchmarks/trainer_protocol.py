"""What the trainers of equal_seconds.py share: a clock, the test, and the time of inference.

This file runs in the virtual environments of all packages, some of which have no torch, so it
imports nothing but numpy and ASE. Every package is asked through its own calculator for ASE, so
all are tested and timed by the same code.
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


WARM_UP = 10  # training steps that are not counted: a compiler meets the first sizes there
SIZES = (64, 512)  # atoms that inference is timed with
CALLS = 3  # of inference that are not counted: a compiler meets a size there
ROUNDS = 7  # timed calls of each size
RATTLE = 0.01  # A, standard deviation; no call repeats the positions of another


class Answer:
    """The line of JSON that is this process's answer; whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def give(self, row: dict[str, Any]) -> None:
        print(json.dumps(row), file=self._stream, flush=True)


class Clock:
    """Processor seconds of the steps of training, until `budget` is spent.

    Steps that may compile, such as the first `warm_up`, count as the mean of the rest. The caller
    says when a step ends, and when something ended that does not count.
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
        """Of all steps so far; zero until one was measured."""
        return self._measured * self.steps / max(1, self._measured_steps)

    def step(self, compiled: bool = False) -> None:
        """A step of training ended here; `compiled` says that its time is not that of others."""
        now = time.process_time()
        self.steps += 1
        if self.steps > self.warm_up and not compiled:
            self._measured += now - self._since
            self._measured_steps += 1
        self._since = now

    def go_on(self) -> None:
        """What happened since the last step, such as a validation, does not count."""
        self._since = time.process_time()

    @property
    def share(self) -> float:
        """Of the budget that is spent, 0 to 1."""
        return min(1.0, self.seconds / self.budget)

    @property
    def is_over(self) -> bool:
        return self.seconds >= self.budget

    def cosine(self) -> float:
        """A factor for the rate that falls from 1 to 0 by half a cosine over the budget."""
        return 0.5 * (1 + math.cos(math.pi * self.share))

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Batches in pass after pass, each of which is a step, until the budget is spent."""
        self.go_on()
        while True:
            for batch in loader:
                yield batch
                self.step()
                if self.is_over:
                    return

    def report(self, batch_size: int) -> dict[str, float]:
        """The part of a row that says what the time was spent on."""
        return {
            "seconds": self.seconds,
            "steps": self.steps,
            "structures": self.steps * batch_size,
        }


def read_settings() -> dict[str, Any]:
    """The file that the command line names."""
    return json.loads(Path(sys.argv[1]).read_text())


def predict(calculator: Calculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy in eV and forces (N, 3) in eV/A."""
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    return calculator.results["energy"], calculator.results["forces"]


def with_labels(path: str) -> list[Atoms]:
    """Structures of a file whose REF_ labels are where ASE looks for energies and forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    structures = ase.io.read(path, ":")
    for atoms in structures:
        energy = atoms.info.pop("REF_energy")
        forces = atoms.arrays.pop("REF_forces")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return structures


def test_errors(calculator: Calculator, path: str) -> dict[str, float]:
    """Mean absolute errors of energies (eV/atom) and components of forces (eV/A)."""
    energies = []
    forces = []
    for atoms in ase.io.read(path, ":"):
        energy, found = predict(calculator, atoms)
        energies.append(abs(float(energy) - atoms.info["REF_energy"]) / len(atoms))
        forces.append(np.abs(found - atoms.arrays["REF_forces"]).ravel())
    return {
        "energy_mae_per_atom": float(np.mean(energies)),
        "force_mae": float(np.concatenate(forces).mean()),
    }


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks, as our training loop does; it is as good for the peers."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def inference_time(calculator: Calculator, path: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Processor microseconds per atom for energy and forces, neighbour list included.

    Returns the number of atoms, as JSON wants it, -> the median over rounds. The atoms move before
    every call, so no calculator can give an older answer.
    """
    keep_freed_memory()
    rng = np.random.default_rng(0)
    found = {}
    for structure in ase.io.read(path, ":"):
        samples = []
        for _ in range(CALLS + rounds):
            atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
            atoms.positions += rng.normal(0, RATTLE, atoms.positions.shape)
            started = time.process_time()
            predict(calculator, atoms)
            samples.append(time.process_time() - started)
        found[str(len(structure))] = 1e6 * statistics.median(samples[CALLS:]) / len(structure)
    return found


def measure(calculator: Calculator, settings: dict[str, Any]) -> dict[str, Any]:
    """What a row says about a trained model: test errors and the time of inference."""
    row: dict[str, Any] = dict(test_errors(calculator, settings["test"]))
    row["microseconds_per_atom"] = inference_time(calculator, settings["inference"])
    return row


def versions(*packages: str) -> dict[str, str]:
    """Package -> version, for the row."""
    return {name: version(name) for name in packages}
