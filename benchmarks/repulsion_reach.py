"""How much of forces and energies core repulsion explains before anything is learned, by its reach.

    python benchmarks/repulsion_reach.py DATA [DATA ...] [--split test]

DATA are converted sets. For each, and for each reach (of the sum of covalent radii; 0 is without)
and for radii that are fitted to the training split, the MAE that is left: of the forces, of all
structures and of those whose force RMS is below and above 5 eV/A, and of the energies per atom
after E0, fitted to the same structures. Writes results/repulsion_reach.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from evenfield.data_pipelines.census.census import ReferenceFit, compositions
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.potential import repulsion
from evenfield.model_zoo.potential.config import PotentialConfig
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.initial_potential import SAMPLE, Sample, fit_radii


REACHES = (0.0, 0.7, 0.8, 0.9, 1.0, 1.1)
FITTED_FROM = repulsion.REACH
LIMIT = 5.0  # eV/A
RESULT = Path(__file__).resolve().parent / "results" / "repulsion_reach.json"


def silent(levels: list[str], reach: float) -> Potential:
    """A potential that predicts the core repulsion alone."""
    repulsion.REACH = reach
    potential = Potential(
        PotentialConfig(channels=1, l_max=1, levels_of_theory=levels, repulsion=reach > 0)
    ).eval()
    torch.nn.init.zeros_(potential.readout.weight)
    return potential


def fitted(folder: Path, levels: list[str]) -> Potential:
    """The same with radii fitted to the training split, as every pretraining begins."""
    potential = silent(levels, FITTED_FROM)
    fit_radii(
        potential.repulsion, Sample.of(Collection([str(folder)]).sample("train", SAMPLE), 5.0)
    )
    return potential


def left_over(structures: list[Structure], potential: Potential) -> dict[str, float]:
    """MAE of forces (eV/A) and of energies after E0 (eV/atom)."""
    predictions = predict(potential, structures)
    sizes = np.array([len(s) for s in structures])
    forces = np.abs(predictions.forces[..., 0] - predictions.forces[..., 1]).mean(1)  # (N,)
    square = (
        np.add.reduceat((predictions.forces[..., 0] ** 2).mean(1), np.cumsum(sizes) - sizes) / sizes
    )
    large = np.repeat(np.sqrt(square) > LIMIT, sizes)
    counts = compositions(np.concatenate([s.atomic_numbers for s in structures]), sizes)
    energy = predictions.energy[:, 0] - predictions.energy[:, 1]  # label minus prediction
    fit = ReferenceFit()
    fit.add(counts, energy)
    e0 = np.zeros(counts.shape[1])
    for z, value in fit.solve()[0].items():
        e0[z] = value
    return {
        "force_mae": float(forces.mean()),
        "force_mae_below": float(forces[~large].mean()),
        "force_mae_above": float(forces[large].mean()) if large.any() else float("nan"),
        "energy_mae_per_atom": float(np.abs((energy - counts @ e0) / sizes).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    results = {}
    for folder in options.data:
        structures = [
            s
            for s in iter_structures(folder, options.split)
            if s.forces is not None and s.energy is not None
        ]
        levels = sorted({s.level_of_theory for s in structures})
        rows = {str(reach): left_over(structures, silent(levels, reach)) for reach in REACHES}
        results[folder.name] = rows | {"fitted": left_over(structures, fitted(folder, levels))}
        print(
            f"{folder.name}: {len(structures)} structures; "
            f"MAE of forces: all, below, above {LIMIT:g} eV/A; energy"
        )
        for reach, row in results[folder.name].items():
            print(f"  reach {reach}: " + "  ".join(f"{value:.3f}" for value in row.values()))
    command = " ".join(["python", "benchmarks/repulsion_reach.py", *(p.name for p in options.data)])
    RESULT.write_text(json.dumps({"command": command, "left": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
