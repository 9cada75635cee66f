"""Does weight decay smooth saddles away? False and missed minima, and lost saddles, over a sweep.

    python benchmarks/weight_decay_saddles.py OUT.json [--steps 400] [--seeds 0 1 2]

Small models learn EMT's clusters of four and five copper atoms, each with another weight decay, all
else equal. Then `evenfield check stationary` compares the stationary points of each with EMT's: a
minimum that EMT does not have is false, one that the model does not have is missed, and a saddle of
EMT at which the model has a minimum is lost. The force error on unseen clusters stands beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from evenfield import model_zoo
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.checks.stationary import (
    confirmed,
    is_lost,
    random_cluster,
    stationary_points,
)
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


DECAYS = (0.0, 1e-4, 1e-2, 1.0)
FORMULAS = ("Cu4", "Cu5")
MODEL = {"channels": 16, "l_max": 2, "cutoff": 5.0}
SIZES = {"train": 200, "valid": 20, "test": 40}
STARTS = 8


def clusters(number: int, split: str, seed: int) -> list[Structure]:
    """Random clusters, each relaxed by a random number of steps and rattled."""
    rng = np.random.default_rng([seed, len(split)])
    made = []
    for index in range(number):
        atoms = random_cluster(FORMULAS[index % len(FORMULAS)], rng)
        atoms.calc = EMT()
        BFGS(atoms, logfile=None).run(fmax=0.01, steps=int(rng.integers(0, 30)))
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        name = f"{split}-{index}"
        made.append(
            Structure.from_atoms(
                Atoms(atoms.numbers, atoms.positions),
                "EMT",
                name,
                name,
                split=split,
                energy=float(atoms.get_potential_energy()),
                forces=atoms.get_forces(),
            )
        )
    return made


def one(data: Path, out: Path, decay: float, steps: int, seed: int) -> dict[str, float]:
    """Train with a weight decay, and compare stationary points with EMT's."""
    config = PretrainConfig.model_validate(
        {
            "data": str(data),
            "out": str(out),
            "model": MODEL,
            "max_steps": steps,
            "seed": seed,
            "evaluate_every": steps,
            "optimizer": {"weight_decay": decay},
        }
    )
    folder = pretrain(config, quiet=True)
    assert folder is not None
    model = model_zoo.load(folder)
    assert model.evaluation is not None
    calculator = model.calculator(dtype="float64", warn_outside=False)

    row = {"force_mae": float(model.evaluation.force_mae), "minima": 0, "saddles": 0}
    row |= {"false_minima": 0, "missed_minima": 0, "lost_saddles": 0}
    for formula in FORMULAS:
        own = stationary_points(calculator, formula, STARTS, seed)
        theirs = stationary_points(EMT(), formula, STARTS, seed)
        minima = [point for point in theirs if point.is_minimum]
        saddles = [point for point in theirs if point.index == 1]
        row["minima"] += len(minima)
        row["saddles"] += len(saddles)
        row["false_minima"] += sum(
            point.is_minimum and not confirmed(EMT(), point) for point in own
        )
        row["missed_minima"] += sum(not confirmed(calculator, point) for point in minima)
        row["lost_saddles"] += sum(is_lost(calculator, point) for point in saddles)
    return row


def main() -> None:
    """Run the sweep for each seed, and write the rows after each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()

    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as work:
            data = Path(work) / "clusters"
            made = []
            for split, number in SIZES.items():
                made += clusters(number, split, seed)
            write_data_set(made, data, {"file": "clusters", "sha256": "0"}, ConvertConfig())
            for decay in DECAYS:
                row = one(data, Path(work) / f"run-{decay}", decay, arguments.steps, seed)
                rows.append({"seed": seed, "weight_decay": decay} | row)
                print(json.dumps(rows[-1]))
                content = {"steps": arguments.steps, "rows": rows}
                arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
