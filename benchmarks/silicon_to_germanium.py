"""What does a model of silicon know of germanium, and how many structures repair it?

    python benchmarks/silicon_to_germanium.py OUT.json [--steps 600] [--seeds 0 1 2]

Labels are Tersoff's of 1989, in which silicon, germanium and their alloys differ by known numbers:

    A_ij = sqrt(A_i A_j), R_ij and S_ij likewise, B_ij = 1.00061 sqrt(B_i B_j) for unlike atoms,
    lambda_ij and mu_ij are means

(J. Tersoff, Phys. Rev. B 39, 5566). A small model is trained on strained and rattled silicon alone.
Its force error on unseen silicon, on random alloys and on germanium says how errors grow with the
share of the new element; the growth factor is that of germanium over silicon. Then it is fine-tuned
with `strategy=full` to 4, 8 and 16 structures of germanium, and as many are learned from scratch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.tersoff import Tersoff, TersoffParameters

from evenfield import model_zoo
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.target import open_target
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


LEVEL = "Tersoff"
# lattice parameters in A
EDGES = {"Si": 5.432, "Ge": 5.657}
UNLIKE = 1.00061
# of an element: A, B (eV), lambda, mu (1/A), beta, n, c, d, h, R, S (A)
ELEMENTS = {
    "Si": (1830.8, 471.18, 2.4799, 1.7322, 1.1e-6, 0.78734, 1.0039e5, 16.217, -0.59825, 2.7, 3.0),
    "Ge": (
        1769.0,
        419.23,
        2.4451,
        1.7047,
        9.0166e-7,
        0.75627,
        1.0643e5,
        15.652,
        -0.43884,
        2.8,
        3.1,
    ),
}
SHOTS = (4, 8, 16)
MODEL = {"channels": 16, "l_max": 2, "cutoff": 4.5}


def parameters() -> dict[tuple[str, str, str], TersoffParameters]:
    """In ASE's form: the first two have a two-body part, the first and the third a cutoff."""
    found = {}
    for first, second, third in product(ELEMENTS, repeat=3):
        a, b, wide, narrow, beta, n, c, d, h, _, _ = ELEMENTS[first]
        a2, b2, wide2, narrow2, *_ = ELEMENTS[second]
        inner = np.sqrt(ELEMENTS[first][9] * ELEMENTS[third][9])
        outer = np.sqrt(ELEMENTS[first][10] * ELEMENTS[third][10])
        factor = 1.0 if first == second else UNLIKE
        found[first, second, third] = TersoffParameters(
            m=3,
            gamma=1,
            lambda3=0,
            c=c,
            d=d,
            h=h,
            n=n,
            beta=beta,
            lambda2=(narrow + narrow2) / 2,
            B=factor * np.sqrt(b * b2),
            R=(inner + outer) / 2,
            D=(outer - inner) / 2,
            lambda1=(wide + wide2) / 2,
            A=np.sqrt(a * a2),
        )
    return found


def structures(share: float, number: int, split: str, seed: int) -> list[Structure]:
    """Strained and rattled diamond cells of eight atoms, a `share` of which is germanium."""
    rng = np.random.default_rng([seed, round(100 * share), len(split)])
    calculator = Tersoff(parameters())
    made = []
    for index in range(number):
        edge = (1 - share) * EDGES["Si"] + share * EDGES["Ge"]
        atoms = bulk("Si", "diamond", a=edge, cubic=True)
        places = rng.permutation(len(atoms))[: round(share * len(atoms))]
        atoms.symbols[places] = "Ge"
        strain = np.eye(3) + rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0, rng.uniform(0.05, 0.2), atoms.positions.shape)
        atoms.calc = calculator
        name = f"{split}-{share}-{seed}-{index}"
        made.append(
            Structure.from_atoms(
                Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True),
                LEVEL,
                name,
                name,
                split=split,
                energy=float(atoms.get_potential_energy()),
                forces=atoms.get_forces(),
            )
        )
    return made


def data_set(folder: Path, share: float, train: int, seed: int) -> Path:
    """A converted set with as many training structures, 20 to choose by and 60 to test on."""
    sizes = {"train": train, "valid": 20, "test": 60}
    made = []
    for split, number in sizes.items():
        made += structures(share, number, split, seed)
    write_data_set(made, folder, {"file": folder.name, "sha256": "0"}, ConvertConfig())
    return folder


def force_error(potential: model_zoo.Potential, tested: list[Structure]) -> float:
    """MAE of the components in eV/A; the model is not asked whether it knows the elements."""
    potential = potential.eval()
    config = potential.config
    errors = []
    for structure in tested:
        batch = Batch.from_structure(structure, config.cutoff, config.levels_of_theory)
        with torch.no_grad():
            found = potential(batch).forces
        errors.append(np.abs(found.numpy() - structure.forces).mean())
    return float(np.mean(errors))


def trained(data: Path, out: Path, steps: int, seed: int) -> model_zoo.LoadedModel:
    """A small model from scratch."""
    config = PretrainConfig.model_validate(
        {
            "data": str(data),
            "out": str(out),
            "model": MODEL,
            "max_steps": steps,
            "seed": seed,
            "evaluate_every": steps,
        }
    )
    folder = pretrain(config, quiet=True)
    assert folder is not None
    return model_zoo.load(folder)


def one(seed: int, steps: int, work: Path) -> dict[str, float]:
    """Errors in eV/A of one seed, by name."""
    silicon = data_set(work / "silicon", 0.0, 160, seed)
    germanium = data_set(work / "germanium", 1.0, max(SHOTS), seed)
    model = trained(silicon, work / "run", steps, seed)

    row = {}
    for name, share in {"Si": 0.0, "Si3Ge": 0.25, "SiGe": 0.5, "SiGe3": 0.75, "Ge": 1.0}.items():
        row[name] = force_error(model.potential, structures(share, 60, "test", seed + 100))
    row["growth"] = row["Ge"] / row["Si"]

    test = structures(1.0, 60, "test", seed + 100)
    for shots in SHOTS:
        # all of them to learn from: the errors are those of structures that nothing has seen
        target = open_target(germanium, num_structures=shots, seed=seed)
        config = FineTuneConfig(strategy="full", seed=seed)
        tuned = finetune(model, target, config)
        row[f"full, {shots}"] = force_error(tuned.potential, test)
        small = data_set(work / f"germanium-{shots}", 1.0, shots, seed)
        scratch = trained(small, work / f"scratch-{shots}", steps, seed)
        row[f"scratch, {shots}"] = force_error(scratch.potential, test)
    return row


def main() -> None:
    """Run the seeds, and write their rows and medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()

    rows = {}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows[f"seed {seed}"] = one(seed, arguments.steps, Path(folder))
        print(json.dumps(rows[f"seed {seed}"], indent=1))
        medians = {
            name: float(np.median([row[name] for row in rows.values()]))
            for name in rows[f"seed {seed}"]
        }
        content = {"steps": arguments.steps, "medians": medians, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
