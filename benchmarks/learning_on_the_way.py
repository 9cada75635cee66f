"""Four ways to choose labels in `evenfield learn`: errors against the number of labels.

    python benchmarks/learning_on_the_way.py WORK [--model evenfield-1] [--seeds 0 1 2] [--out FILE]

The task: crystals of 16 atoms of copper, gold and two alloys of them from 600 to 2400 K, with EMT
as the oracle, at a level of theory that the model has never seen. Each loop spends 28 labels: a
rattled copy of each crystal to begin with, then rounds of 6. The model after each round is judged
by errors on 120 structures from dynamics that EMT itself drives at the same temperatures, with
other velocities.

The guard stops at a radius of 0.2 eV/A, so that no loop ends before its labels are spent: with 0.5
eV/A on one alloy, one ended with 14 labels and another with 24. Twelve simulations that stop early
still meet several times as many structures as a round labels, so that there is a choice.

All ways see the same first labels for a seed. Loops stand in WORK, so that a run that was
interrupted goes on. With --out, a picture of the same name is drawn as well.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from label_curves import errors, keep

from evenfield.core.thermal import set_thermal_momenta
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import load
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.loop import learn


WAYS = ("determinant", "random", "farthest", "committee")
TEMPERATURES = (600.0, 1500.0, 2400.0)
# atoms of gold among the 16 of each crystal
GOLD = (5, 16, 0, 11)
LEVEL = "EMT-alloy"
# settings that the result names
TOLD = {"labels", "initial", "batch", "steps", "every", "temperatures", "guard", "strategy"}


def crystals() -> list[Atoms]:
    """16 atoms on the sites of an fcc lattice each, at about the volume of the melt."""
    found = []
    for number, gold in enumerate(GOLD):
        # Vegard's rule between the two metals
        constant = 3.75 + 0.45 * gold / 16
        atoms = bulk("Cu", a=constant, cubic=True).repeat((2, 2, 1))
        places = np.random.default_rng(number).choice(16, gold, replace=False)
        atoms.symbols[places] = "Au"
        found.append(atoms)
    return found


def test_structures() -> list[Structure]:
    """What EMT's own dynamics met, each 100 fs."""
    found = []
    walks = [(atoms, temperature) for atoms in crystals() for temperature in TEMPERATURES]
    for number, (atoms, temperature) in enumerate(walks):
        atoms.calc = EMT()
        set_thermal_momenta(atoms, temperature, 1000 + number)
        dynamics = Langevin(
            atoms,
            2 * units.fs,
            temperature_K=temperature,
            friction=0.01 / units.fs,
            rng=np.random.default_rng(2000 + number),
            fixcm=False,
        )
        for step in range(10):
            dynamics.run(50)
            labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            found.append(Structure.from_atoms(atoms.copy(), LEVEL, f"{number}-{step}", **labels))
    return found


def settings(way: str, seed: int) -> LearnConfig:
    """Those of one loop."""
    return LearnConfig(
        oracle="EMT",
        level_of_theory=LEVEL,
        labels=28,
        initial=4,
        initial_rattle=(0.05, 0.3),
        batch=6,
        steps=200,
        every=5,
        temperatures=list(TEMPERATURES),
        guard={"force_radius": 0.2},
        strategy="wide",
        choose=way,
        seed=seed,
    )


def curve(out: Path, rounds: list[dict[str, Any]], judged: list[Structure]) -> list[dict[str, Any]]:
    """The errors after each round that has led to a model."""
    points = []
    for number, done in enumerate(rounds):
        folder = out / "rounds" / f"{number:03d}" / "model" / out.name
        if folder.exists():
            points.append({"labels": done["labels"]} | errors(load(folder), LEVEL, judged))
    return points


def main() -> None:
    """Print a JSON object for each loop, and write all of them where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load(arguments.model)
    judged = test_structures()
    force_rms = np.sqrt(np.mean([np.square(one.forces).mean() for one in judged]))
    about = {
        "model": base.reference,
        "test_structures": len(judged),
        "test_force_rms": float(force_rms),
        "settings": settings(WAYS[0], 0).model_dump(mode="json", include=TOLD),
    }
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for way in WAYS:
            began = time.process_time()
            out = arguments.work / f"{way}-{seed}"
            done = learn(base, crystals(), out, settings(way, seed))
            rows.append(
                {
                    "way": way,
                    "seed": seed,
                    "labels": done.rounds[-1]["labels"],
                    "ended": done.ended,
                    "picoseconds": done.rounds[-1]["picoseconds"],
                    "seconds": round(time.process_time() - began, 1),
                    "curve": curve(out, done.rounds, judged),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            result = keep(about, rows, arguments.out)
    print(json.dumps(result["labels over those of"], indent=1))


if __name__ == "__main__":
    main()
