"""What charges beside a model give where forces reach beyond its cutoff, and cost elsewhere.

    python benchmarks/physics_blocks.py [--steps 300] [--channels 8] [--layers 1] [--seed 0]

The ionic ladder: rock salt like NaCl (charges of 1 e) and MgO (1.6 e) in cells of 64 and 128 atoms,
strained, rattled, and with a long polar wave, in which cations and anions move against each other.
Labels are those of a Born-Mayer repulsion that ends at 5 A, and of charges of 0.1 A width that have
no end. One network with a cutoff of 5 A is trained twice: on the labels as they are, and on what
the block leaves of them (charges of the stated size, but 0.5 A wide: the network has to learn the
difference). A third training has labels as they are and charges that nobody states: the network
learns them through their Coulomb energy (model.charges). Errors are those of the calculator on
structures that were held out.

The metal: random copper-gold alloys labelled by EMT, which knows no charges. The block is a charge
equilibration that has no part in the labels, so the network has to learn its opposite.

One seed, minutes on one core. Writes results/physics_blocks.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.physics import Physics
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


RESULT = Path(__file__).resolve().parent / "results" / "physics_blocks.json"
MADELUNG = 1.7475646
COULOMB = 14.399645  # eV A
REACH = 5.0  # A, of the repulsion and of the network
# cation, anion, charge in e, lattice parameter in A, softness of the repulsion in A
SALTS = {"NaCl": ("Na", "Cl", 1.0, 5.64, 0.32), "MgO": ("Mg", "O", 1.6, 4.21, 0.30)}
CHARGES = {"Na": 1.0, "Cl": -1.0, "Mg": 1.6, "O": -1.6}
LONG_RANGE = {"coulomb": {"charges": CHARGES}}
# Mulliken electronegativity and hardness
EQUILIBRATED = {
    "coulomb": {
        "electronegativity": {"Cu": 4.48, "Au": 5.77},
        "hardness": {"Cu": 6.50, "Au": 6.92},
    }
}
TRAIN_SHARE = 0.8


def salt(name: str, rng: np.random.Generator) -> Atoms:
    """A strained and rattled salt with a polar wave."""
    cation, anion, charge, lattice, softness = SALTS[name]
    cells = (2, 2, 2) if rng.random() < 0.7 else (2, 2, 4)
    atoms = bulk(cation + anion, "rocksalt", a=lattice, cubic=True).repeat(cells)
    axis = int(rng.integers(3))
    phase = 2 * np.pi * (atoms.get_scaled_positions()[:, axis] + rng.random())
    direction = rng.normal(size=3)
    direction *= rng.uniform(0, 0.2) / np.linalg.norm(direction)
    signs = np.where(atoms.numbers == atoms.numbers[0], 1.0, -1.0)
    atoms.positions += np.outer(signs * np.sin(phase), direction)
    atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
    strain = rng.normal(0, 0.02, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)

    energy, forces, stress = born_mayer(atoms, charge, lattice / 2, softness)
    points = PhysicsConfig.model_validate({"coulomb": {"charges": CHARGES, "width": 0.1}})
    known = Physics(points).of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    return labelled(
        atoms,
        energy + known.energy,
        forces + known.forces,
        full_3x3_to_voigt_6_stress(stress + known.stress),
    )


def born_mayer(
    atoms: Atoms, charge: float, distance: float, softness: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces (N, 3) and stress (3, 3) of A exp(-r / softness) (1 - (r / REACH)^2)^3.

    Between cations and anions. A is such that the crystal rests at `distance`, as far as the
    switch, which takes a little of the slope, allows.
    """
    strength = MADELUNG * COULOMB * charge**2 * softness / (6 * distance**2)
    strength *= np.exp(distance / softness)
    first, second, vectors, lengths = neighbor_list("ijDd", atoms, REACH)
    unlike = atoms.numbers[first] != atoms.numbers[second]
    first, vectors, lengths = first[unlike], vectors[unlike], lengths[unlike]
    switch = (1 - (lengths / REACH) ** 2) ** 3
    switch_slope = -6 * lengths / REACH**2 * (1 - (lengths / REACH) ** 2) ** 2
    bare = strength * np.exp(-lengths / softness)
    slope = bare * (switch_slope - switch / softness)
    pulls = (slope / lengths)[:, None] * vectors
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, first, pulls)
    stress = 0.5 * pulls.T @ vectors / atoms.get_volume()
    return float(0.5 * (bare * switch).sum()), forces, stress


def metal(rng: np.random.Generator) -> Atoms:
    """A strained and rattled alloy of 32 atoms, labelled by EMT."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True).repeat(2)
    gold = rng.random(len(atoms)) < rng.uniform(0.1, 0.9)
    atoms.numbers[gold] = 79
    lattice = 3.61 + (4.08 - 3.61) * gold.mean()
    atoms.set_cell(atoms.cell.array * lattice / 3.8, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.calc = EMT()
    return labelled(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())


def labelled(atoms: Atoms, energy: float, forces: np.ndarray, stress: np.ndarray) -> Atoms:
    """The structure with these labels."""
    own = atoms.copy()
    own.calc = SinglePointCalculator(own, energy=energy, forces=forces, stress=stress)
    return own


def errors_of(
    name: str,
    frames: list[Atoms],
    physics: dict[str, Any] | None,
    options: argparse.Namespace,
    folder: Path,
    *,
    learned: bool = False,
) -> dict[str, Any]:
    """Train on most of the frames with this block; errors of the calculator on the others.

    learned: with charges that the network learns.
    """
    number = int(TRAIN_SHARE * len(frames))
    arm = "learned" if learned else "with" if physics else "without"
    own = folder / f"{name}-{arm}"
    own.mkdir()
    ase.io.write(own / "frames.extxyz", frames[:number])
    settings = {
        "level_of_theory": name,
        "physics": physics,
        "trust_units": True,
        "split_by": "structure",
    }
    began = time.perf_counter()
    convert(own / "frames.extxyz", own / "data", ConvertConfig.model_validate(settings), workers=1)
    converted = time.perf_counter()
    recipe = {
        "data": str(own / "data"),
        "out": str(own / "run"),
        "seed": options.seed,
        "max_steps": options.steps,
        "evaluate_every": options.steps,
        "model": {
            "channels": options.channels,
            "num_layers": options.layers,
            "cutoff": REACH,
            "l_max": 2,
            "charges": learned,
        },
        "stream": {"edge_budget": 12000},
    }
    pretrain(PretrainConfig.model_validate(recipe), quiet=True)
    trained = time.perf_counter()

    calculator = load(own / "run" / "model").calculator()
    differences = []
    per_atom = []
    sizes = []
    for frame in frames[number:]:
        asked = frame.copy()
        asked.calc = calculator
        differences.append((asked.get_forces() - frame.get_forces()).ravel())
        error = asked.get_potential_energy() - frame.get_potential_energy()
        per_atom.append(abs(error) / len(frame))
        sizes.append(frame.get_forces().ravel())
    difference = np.concatenate(differences)
    charges: dict[str, list[float]] = {}
    if learned:
        for frame in frames[number:]:
            for symbol, charge in zip(frame.symbols, calculator.get_charges(frame), strict=True):
                charges.setdefault(symbol, []).append(float(charge))
    found: dict[str, Any] = {
        "force_mae": float(np.abs(difference).mean()),
        "force_rmse": float(np.sqrt(np.square(difference).mean())),
        "energy_mae_per_atom": float(np.mean(per_atom)),
        "force_rms_of_labels": float(np.sqrt(np.square(np.concatenate(sizes)).mean())),
        "seconds_converting": round(converted - began, 1),
        "seconds_training": round(trained - converted, 1),
        "seconds_of_a_call": round((time.perf_counter() - trained) / len(sizes), 3),
    }
    if learned:
        found["mean_charges"] = {key: float(np.mean(own)) for key, own in charges.items()}
        found["spread_of_charges"] = {key: float(np.std(own)) for key, own in charges.items()}
    print(name, arm, json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--structures", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    salts = [salt(name, rng) for _ in range(options.structures // 2) for name in SALTS]
    metals = [metal(rng) for _ in range(options.structures)]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, frames, physics in (
            ("salts", salts, LONG_RANGE),
            ("metals", metals, EQUILIBRATED),
        ):
            without = errors_of(name, frames, None, options, Path(folder))
            beside = errors_of(name, frames, physics, options, Path(folder))
            learned = errors_of(name, frames, None, options, Path(folder), learned=True)
            rows[name] = {
                "without": without,
                "with": beside,
                "learned": learned,
                "force_mae_without_over_with": without["force_mae"] / beside["force_mae"],
                "force_mae_without_over_learned": without["force_mae"] / learned["force_mae"],
            }
    command = f"python benchmarks/physics_blocks.py --steps {options.steps}"
    command += f" --channels {options.channels} --layers {options.layers}"
    command += f" --structures {options.structures} --seed {options.seed}"
    content = {"command": command, "rows": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in rows.items():
        print(name, {key: value for key, value in row.items() if "over" in key})


if __name__ == "__main__":
    main()
