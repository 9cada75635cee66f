"""What a guard costs in each step: the same dynamics with and without, interleaved.

    python benchmarks/guard_cost.py [MODEL] [--steps 12] [--out FILE.json]

MODEL has a record of its uncertainty. Rocksalt of 64 atoms at 300 K, processor seconds of one
thread. Ratios to a dynamics without a guard, medians over rounds: the guard with rules about the
structure alone, with a radius at every step, and with a radius at every tenth step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from evenfield.core.thermal import set_thermal_momenta
from evenfield.model_zoo import load
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.simulation.guard import Guard, GuardConfig


STRUCTURE = {"bond_stretch": 3.0, "gap": 6.0, "temperature": 1e5}
ARMS = {
    "none": GuardConfig(),
    "structure": GuardConfig(**STRUCTURE),
    "radius": GuardConfig(force_radius=1e3),
    "radius, every tenth step": GuardConfig(force_radius=1e3, every=10),
}


def dynamics(model: LoadedModel, config: GuardConfig) -> VelocityVerlet:
    """As `evenfield simulate` makes it."""
    atoms: Atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    apart = config.needs_uncertainty and config.every > 1
    together = config.needs_uncertainty and not apart
    atoms.calc = model.calculator(warn_outside=False, uncertainty=together)
    judge = model.calculator(warn_outside=False, uncertainty=True) if apart else None
    set_thermal_momenta(atoms, 300.0, 0)
    moving = VelocityVerlet(atoms, 1.0 * units.fs)
    if config.has_rules:
        moving.attach(Guard(atoms, config, calculator=judge), interval=config.every)
    return moving


def main() -> None:
    """Print one JSON object, and write it where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="evenfield-1")
    parser.add_argument("--steps", type=int, default=10, help="of each arm in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    moving = {name: dynamics(model, config) for name, config in ARMS.items()}
    for one in moving.values():
        # searches neighbours and fills caches
        one.run(arguments.steps)
    ratios: dict[str, list[float]] = {name: [] for name in ARMS if name != "none"}
    for _ in range(arguments.rounds):
        spent = {}
        for name, one in moving.items():
            started = time.process_time()
            one.run(arguments.steps)
            spent[name] = time.process_time() - started
        for name, values in ratios.items():
            values.append(spent[name] / spent["none"])
    result = {
        "model": model.reference,
        "atoms": 64,
        "steps": arguments.steps,
        "ratios": {
            name: {
                "median": round(statistics.median(values), 3),
                "all": [round(value, 3) for value in sorted(values)],
            }
            for name, values in ratios.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
