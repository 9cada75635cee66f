"""Seconds of the closed-form refit with core radii: 32 structures of 64 atoms.

    python benchmarks/refit_speed.py [--structures 32] [--threads 2] [--model FOLDER]

Without a model the default potential with random weights is taken, on whose values the work does
not depend.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.closed_form.radii import refit_radii
from evenfield.finetune.closed_form.refit import refit_readout
from evenfield.model_zoo import Potential, PotentialConfig, load_model


COPPER = 29


def copper(number: int, level: str) -> list[Structure]:
    """Rattled crystals of 64 atoms with EMT labels."""
    rng = np.random.default_rng(0)
    structures = []
    for k in range(number):
        atoms = bulk("Cu", cubic=True) * (2, 2, 4)
        atoms.rattle(0.08, rng=rng)
        atoms.calc = EMT()
        structures.append(
            Structure.from_atoms(
                atoms,
                level,
                f"copper-{k}",
                f"{k}",
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
            )
        )
    return structures


def main(words: list[str] | None = None) -> dict[str, float]:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    potential = (
        load_model(arguments.model)[0]
        if arguments.model
        else Potential(PotentialConfig(num_neighbours=42.0))
    )
    structures = copper(arguments.structures, potential.config.levels_of_theory[0])
    started = time.perf_counter()
    processor = time.process_time()
    refit_radii(potential.eval(), 0, structures)
    radii = time.perf_counter() - started
    report, _ = refit_readout(potential, 0, structures, known={COPPER}, known_e0={COPPER})
    result = {
        "structures": arguments.structures,
        "labels": report.rows,
        "seconds": round(time.perf_counter() - started, 2),
        "of these for core radii": round(radii, 2),
        "processor seconds": round(time.process_time() - processor, 2),
        "relative gradient at the solution": report.relative_gradient,
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
