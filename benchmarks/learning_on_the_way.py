"""Four ways to choose labels in `evenfield learn`: errors against the number of labels.

    python benchmarks/learning_on_the_way.py WORK [--task alloys] [--model evenfield-1]
        [--seeds 0 1 2] [--out FILE]

alloys: crystals of 16 atoms of copper, gold and two of their alloys from 600 to 2400 K, with EMT as
the oracle.

clusters: sodium astatide in vacuum, blocks of 4 to 16 atoms at 600 and 1200 K, with GFN1-xTB as the
oracle. The first labels are of the four clusters of up to 8 atoms; only simulations meet those of
12 and 16. Astatine is the new element: evenfield-1 knows it from one of its 18 levels,
acwf_vasp_pbe, and there from equations of state of crystals whose forces are zero by symmetry. It
has learned no molecule or cluster with astatine, and no force on it that is not zero.

Each task has a level of theory that the model has never seen. Each loop spends 28 labels: a rattled
copy of each of the first four structures, then rounds of 6. The model after each round is judged by
its errors on 120 structures. They come from dynamics that the oracle itself drives at the same
temperatures, from the same structures with other velocities.

The radius at which the guard stops a simulation must be small enough that no loop ends before its
labels are spent: with 0.5 eV/A on one alloy, one loop ended with 14 labels and another with 24. Nor
may it be so small that simulations stay where they begin. All simulations of clusters together came
to 0.27 ps with 0.1 eV/A, to 1.5 ps with 0.3, and to 6.3 ps with 0.5 (determinant, seed 0), where
ten of twelve were still stopped in the last round.

Twelve simulations that stop early still meet several times as many structures as a round labels, so
there is a choice. The first round on clusters is an exception: with four labels, nearly all
simulations stop where they begin. With seed 0 they met eight structures, and six got a label.

All ways have the same first labels for a seed. Loops are kept in WORK, so an interrupted run goes
on. With --out, a picture of the same name is drawn as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from benchmark_structures import rock_salt
from label_curves import errors, summarised

from evenfield.core.thermal import set_thermal_momenta
from evenfield.data_pipelines.enrich.label_oracles import new_calculator
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import load
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.loop import learn


WAYS = ("determinant", "random", "farthest", "committee")
# Atoms of gold among the 16 of each crystal.
GOLD = (5, 16, 0, 11)
SALT = "NaAt"
# A, between neighbours: the distance with the lowest GFN1-xTB energy of a cube of 8 ions.
DISTANCE = 3.13
# Sites of rock salt along each axis, from 4 ions to 16; there are two clusters of 8.
SHAPES = ((1, 2, 2), (1, 2, 3), (1, 2, 4), (2, 2, 2), (2, 2, 3), (2, 2, 4))
# Settings that the result names.
TOLD = {"labels", "initial", "batch", "steps", "every", "temperatures", "guard", "strategy"}


def crystals() -> list[Atoms]:
    """Crystals of 16 atoms on the sites of an fcc lattice, at about the volume of the melt."""
    found = []
    for number, gold in enumerate(GOLD):
        # Vegard's rule between the two metals
        constant = 3.75 + 0.45 * gold / 16
        atoms = bulk("Cu", a=constant, cubic=True).repeat((2, 2, 1))
        places = np.random.default_rng(number).choice(16, gold, replace=False)
        atoms.symbols[places] = "Au"
        found.append(atoms)
    return found


def clusters() -> list[Atoms]:
    """Blocks of rock salt in vacuum, from small to large."""
    return [rock_salt(SALT, DISTANCE, shape) for shape in SHAPES]


@dataclass(frozen=True)
class Task:
    """What simulations begin with, and who labels."""

    structures: Callable[[], list[Atoms]]
    oracle: str
    level: str
    """The level of theory of the labels."""
    temperatures: tuple[float, ...]
    """K"""
    steps: int
    """Of each simulation, of 2 fs."""
    force_radius: float
    """eV/A, at which a simulation stops."""


TASKS = {
    "alloys": Task(crystals, "EMT", "EMT-alloy", (600.0, 1500.0, 2400.0), 200, 0.2),
    "clusters": Task(clusters, "GFN1-xTB", "GFN1-xTB", (600.0, 1200.0), 500, 0.5),
}


def test_structures(task: Task) -> list[Structure]:
    """Labelled structures of dynamics that the oracle drives, one every 100 fs."""
    found = []
    walks = [
        (atoms, temperature) for atoms in task.structures() for temperature in task.temperatures
    ]
    for number, (atoms, temperature) in enumerate(walks):
        atoms.calc = new_calculator(task.oracle, {})
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
            found.append(
                Structure.from_atoms(atoms.copy(), task.level, f"{number}-{step}", **labels)
            )
    return found


def settings(task: Task, way: str, seed: int) -> LearnConfig:
    """The settings of one loop."""
    return LearnConfig(
        oracle=task.oracle,
        level_of_theory=task.level,
        labels=28,
        initial=4,
        initial_rattle=(0.05, 0.3),
        batch=6,
        steps=task.steps,
        every=5,
        temperatures=list(task.temperatures),
        guard={"force_radius": task.force_radius},
        strategy="wide",
        choose=way,
        seed=seed,
    )


def curve(
    out: Path, rounds: list[dict[str, Any]], level: str, judged: list[Structure]
) -> list[dict[str, Any]]:
    """A point for each round that has led to a model: labels so far, and errors."""
    points = []
    for number, done in enumerate(rounds):
        folder = out / "rounds" / f"{number:03d}" / "model" / out.name
        if folder.exists():
            points.append({"labels": done["labels"]} | errors(load(folder), level, judged))
    return points


def main() -> None:
    """Print a JSON object for each loop, and write all of them to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", choices=TASKS, default="alloys")
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load(arguments.model)
    task = TASKS[arguments.task]
    judged = test_structures(task)
    force_rms = np.sqrt(np.mean(np.square(np.concatenate([one.forces for one in judged]))))
    about = {
        "task": arguments.task,
        "oracle": task.oracle,
        "model": base.reference,
        "test_structures": len(judged),
        "test_force_rms": float(force_rms),
        "settings": settings(task, WAYS[0], 0).model_dump(mode="json", include=TOLD),
    }
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for way in WAYS:
            began = time.process_time()
            out = arguments.work / f"{arguments.task}-{way}-{seed}"
            done = learn(base, task.structures(), out, settings(task, way, seed))
            rows.append(
                {
                    "way": way,
                    "seed": seed,
                    "labels": done.rounds[-1]["labels"],
                    "ended": done.ended,
                    "picoseconds": done.rounds[-1]["picoseconds"],
                    "seconds": round(time.process_time() - began, 1),
                    "curve": curve(out, done.rounds, task.level, judged),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            result = summarised(about, rows, arguments.out)
    print(json.dumps(result["labels over those of"], indent=1))


if __name__ == "__main__":
    main()
