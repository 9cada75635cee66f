"""How the cost of energy and forces grows with the number of atoms, in CPU seconds of one thread.

    python benchmarks/size_scaling.py [--compiled]

fcc copper, rattled, from 64 to 8,000 atoms, neighbour list included. The exponent is the slope of
log(seconds) over log(atoms), once through all sizes and once from 512 atoms on, where the fixed
cost of a call is small. Writes results/size_scaling.json, size_scaling_compiled.json with
--compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk

from evenfield.core.freed_memory import keep_freed_memory
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.compile.compiled import compile_for_inference


RESULTS = Path(__file__).resolve().parent / "results"
REPEATS = (
    (4, 2, 2),
    (4, 4, 2),
    (4, 4, 4),
    (8, 4, 4),
    (8, 8, 4),
    (8, 8, 8),
    (10, 10, 10),
    (20, 10, 10),
)


def structure(repeat: tuple[int, int, int]) -> Structure:
    """fcc copper of 4 atoms times `repeat`."""
    atoms = bulk("Cu", cubic=True) * repeat
    atoms.rattle(0.1, seed=0)
    return Structure.from_atoms(atoms, "default", "")


def seconds(potential: Potential, one: Structure) -> float:
    """CPU seconds of a call; its tensors are freed within the time."""
    started = time.process_time()
    with torch.no_grad():
        potential(Batch.join([Batch.from_structure(one, potential.config.cutoff)]))
    return time.process_time() - started


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the network")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=arguments.channels, num_neighbours=44.7)).eval()
    if arguments.compiled:
        compile_for_inference(potential)
    structures = [structure(repeat) for repeat in REPEATS]
    samples: dict[int, list[float]] = {len(s): [] for s in structures}
    for _ in range(arguments.rounds):
        for one in structures:
            seconds(potential, one)  # after a larger one, the first call of a size sorts the heap
            samples[len(one)].append(seconds(potential, one))
    sizes = np.array(list(samples))
    medians = np.array([statistics.median(values) for values in samples.values()])
    exponents = {
        f"from {first}": float(
            np.polyfit(np.log(sizes[sizes >= first]), np.log(medians[sizes >= first]), 1)[0]
        )
        for first in (64, 512)
    }
    words = ["--compiled"] if arguments.compiled else []
    command = [
        "python benchmarks/size_scaling.py",
        f"--channels {arguments.channels} --rounds {arguments.rounds}",
    ]
    result = {
        "command": " ".join(command + words),
        "exponents": exponents,
        "microseconds_per_atom": {int(n): 1e6 * t / n for n, t in zip(sizes, medians, strict=True)},
    }
    name = "size_scaling_compiled.json" if arguments.compiled else "size_scaling.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
