"""One side of pretrained_peers.py: a calculator in its own environment, which has evenfield too.

    python benchmarks/pretrained_worker.py (--calculator module:name | --model REF [--level NAME])
        (answers | curves) TASK.traj OUT.jsonl | checks OUT.json | sanity FOLDER | speed

Answers are appended one by one, so that a stopped run goes on where it was. What the calculator
fails on, for example because it does not know an element, is answered with null.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.io import read
from peer_calculators import versions
from simple_checks import simple_checks

from evenfield.diagnostics.check import CheckedCalculator, CheckedModel, OtherCalculator
from evenfield.diagnostics.checks import sanity
from evenfield.diagnostics.sanity.answers import ask, energy_per_atom
from evenfield.diagnostics.sanity.config import SanityConfig
from evenfield.diagnostics.sanity.equation_of_state import FIT, fit_birch_murnaghan
from evenfield.model_zoo.hub.load import load


# Steps outward, each of half the width of a fit, before a curve counts as one without a minimum.
MAX_MOVES = 8
SALT_ATOMS = 216
WARM_UP = 3  # calls


def checked(options: argparse.Namespace) -> CheckedCalculator:
    """The calculator that the command line names."""
    if options.calculator:
        return OtherCalculator(options.calculator)
    return CheckedModel(load(options.model), options.level)


def answer(calculator: Calculator, atoms: Atoms) -> dict[str, Any] | None:
    """Energy in eV, forces in eV/A and stress in eV/A^3; None if the calculator fails."""
    found = ask(calculator, atoms, stress=True)
    is_finite = np.isfinite(found.energy) and np.isfinite(found.forces).all()
    if not is_finite:
        return None
    # tenths of a micro-electronvolt are far below what is compared
    return {
        "energy": found.energy,
        "forces": found.forces.astype(float).round(7).tolist(),
        "stress": found.stress.astype(float).round(9).tolist(),
    }


def curve(calculator: Calculator, atoms: Atoms) -> dict[str, float] | None:
    """The equation of state of a crystal whose atoms stay at rest by symmetry.

    Seven volumes around a centre, which moves outward until it has the minimum: volume in A^3/atom,
    bulk modulus in GPa, energy in eV/atom. Without a minimum all are null; None if the calculator
    fails at the first volume.
    """
    expected = atoms.get_volume() / len(atoms)
    known: dict[float, float] = {}

    def energy(volume: float) -> float:
        if volume not in known:
            scaled = atoms.copy()
            scaled.set_cell(atoms.cell * (volume / expected) ** (1 / 3), scale_atoms=True)
            known[volume] = energy_per_atom(calculator, scaled)
        return known[volume]

    if not np.isfinite(energy(expected)):
        return None
    nothing = {"volume": np.nan, "bulk_modulus": np.nan, "energy": np.nan}
    centre = expected
    for _ in range(MAX_MOVES):
        volumes = centre * FIT
        energies = np.array([energy(float(volume)) for volume in volumes])
        if not np.isfinite(energies).all():
            return nothing
        lowest = int(energies.argmin())
        if lowest not in (0, len(volumes) - 1):
            found = fit_birch_murnaghan(volumes, energies)
            return {
                "volume": found.volume,
                "bulk_modulus": found.bulk_modulus,
                "energy": found.energy,
            }
        centre = float(volumes[lowest])
    return nothing


def each_structure(
    make: Callable[[Calculator, Atoms], Any], calculator: Calculator, task: Path, out: Path
) -> None:
    """Append a line for each structure that `out` does not have yet."""
    structures = read(task, ":")
    done = len(out.read_text().splitlines()) if out.is_file() else 0
    with out.open("a") as file:
        for atoms in structures[done:]:
            started = time.process_time()
            found = make(calculator, atoms)
            seconds = round(time.process_time() - started, 4)
            file.write(json.dumps({"seconds": seconds, "answer": found}) + "\n")
            file.flush()


def sodium_chloride() -> Atoms:
    """The crystal of the comparison of speed, rattled."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 3
    assert len(atoms) == SALT_ATOMS
    atoms.rattle(0.05, seed=0)
    return atoms


def moves() -> Iterator[np.ndarray]:
    """Displacements of each call in A, about those of a step of dynamics at room temperature."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.normal(0, 0.01, (SALT_ATOMS, 3))


def serve_speed(calculator: Calculator) -> None:
    """Answer each line {"calls": k} with the processor time per call and atom in ms.

    A call gives energy, forces and stress of atoms that have just moved, neighbour list included.
    """
    atoms = sodium_chloride()
    atoms.calc = calculator
    displacements = moves()

    def call() -> None:
        atoms.positions += next(displacements)
        atoms.get_forces()
        atoms.get_stress()

    for _ in range(WARM_UP):
        call()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        calls = json.loads(line)["calls"]
        started = time.process_time()
        for _ in range(calls):
            call()
        spent = time.process_time() - started
        print(json.dumps({"ms_per_atom": 1000 * spent / calls / SALT_ATOMS}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--calculator")
    side.add_argument("--model")
    parser.add_argument("--level")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("answers", "curves"):
        part = parts.add_parser(name)
        part.add_argument("task", type=Path)
        part.add_argument("out", type=Path)
    checks = parts.add_parser("checks")
    checks.add_argument("out", type=Path)
    battery = parts.add_parser("sanity")
    battery.add_argument("out", type=Path)
    battery.add_argument("words", nargs="*", help="settings of `evenfield check sanity`")
    parts.add_parser("speed")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = checked(options)
    if options.part == "speed":
        serve_speed(model.calculator())
    elif options.part == "checks":
        found = {"versions": versions(), "checks": {}}
        if options.out.is_file():
            found = json.loads(options.out.read_text())
        for name, verdict in simple_checks(model, found["checks"]):
            found["checks"][name] = verdict
            options.out.write_text(json.dumps(found))
    elif options.part == "sanity":
        settings = SanityConfig.model_validate(
            dict(word.split("=", 1) for word in options.words) | {"reference": "pbe"}
        )
        sanity.check(model, settings, options.out)
    else:
        make = answer if options.part == "answers" else curve
        each_structure(make, model.calculator(), options.task, options.out)


if __name__ == "__main__":
    main()
