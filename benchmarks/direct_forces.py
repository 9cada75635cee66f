"""Forces of a head beside derivatives of the energy: errors, time of a call, drift in NVE.

    python benchmarks/direct_forces.py [--data FOLDER] [--model evenfield-1]

- Errors: heads fitted to 80 % of up to 500 structures of real sets, MAE on the rest over the
  standard deviation of the components. Sets of one composition are split by structure, the others
  by composition. `functions` is the number of random functions.
- Rock salt of 64 and 216 ions, labelled by the model itself: the error of a head that learned 32
  rattled cells, medians of twelve interleaved calls with moved atoms on one thread, and the drift
  of the total energy in 1 ps of NVE from 300 K, for both kinds of forces.

Minutes. Writes results/direct_forces.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.core.thermal import set_thermal_momenta
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.save import save_head
from evenfield.model_zoo.hub.load import LoadedModel


RESULT = Path(__file__).parent / "results" / "direct_forces.json"
SETS = {
    "mol_ethanol": "structure",
    "water_revpbe0_d3": "structure",
    "mptrj_random1k": "composition",
}
MOST_STRUCTURES = 500
FUNCTIONS = (0, 256)
SIZES = (2, 3)
LEVEL = "mp_pbe"


def configured(*words: str) -> HeadConfig:
    """Settings of a head of forces."""
    fixed = ["head=forces", "unit=eV/A", "level_of_theory=labels", "skip_unlabelled=true"]
    return load_settings(HeadConfig, None, [*fixed, *words])


def quiet(text: str) -> None:
    """Say nothing."""


def errors(model: LoadedModel, data: Path, folder: Path, name: str) -> dict[str, Any]:
    """Errors of heads on a real set."""
    frames = ase.io.read(data / f"{name}.extxyz.gz", ":")
    drawn = np.random.default_rng(0).permutation(len(frames))[:MOST_STRUCTURES]
    chosen = []
    for place in drawn:
        atoms = frames[place]
        atoms.calc = None
        if set(atoms.symbols) <= set(model.record.symbols):
            chosen.append(atoms)
    path = folder / f"{name}.extxyz"
    ase.io.write(path, chosen)

    found: dict[str, Any] = {}
    for functions in FUNCTIONS:
        config = configured("key=REF_forces", f"split={SETS[name]}", f"num_functions={functions}")
        head = fit_head(model, path, config, say=quiet)
        own = head.description.errors
        found["structures"] = head.description.num_structures
        found[f"functions={functions}"] = {
            "mae": own["mae"],
            "mae_over_spread": own["mae"] / own["spread"],
        }
    return found


def rock_salt(size: int) -> Atoms:
    """A cube of rock salt near the lattice constant of the model."""
    return bulk("NaCl", "rocksalt", 5.7, cubic=True) * (size, size, size)


def head_of_rock_salt(model: LoadedModel, folder: Path) -> tuple[LoadedModel, dict[str, float]]:
    """The model with a head of its own forces, and the errors of that."""
    rng = np.random.default_rng(0)
    calculator = model.calculator(level_of_theory=LEVEL)
    frames = []
    for _ in range(40):
        atoms = rock_salt(2)
        atoms.positions += rng.normal(0, rng.uniform(0.05, 0.2), atoms.positions.shape)
        atoms.arrays["own"] = calculator.get_forces(atoms)
        frames.append(atoms)
    path = folder / "salt.extxyz"
    ase.io.write(path, frames)
    config = configured("key=own", "name=direct_forces", "split=structure")
    head = fit_head(model, path, config, say=quiet)
    with_head = model_zoo.load(save_head(head, model, "model", folder / "model"))
    return with_head, dict(head.description.errors)


def milliseconds(calculators: dict[str, Calculator], size: int) -> dict[str, float]:
    """Median time of a call with moved atoms, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calculators}
    for turn in range(13):
        for name, calculator in calculators.items():
            atoms = rock_salt(size)
            atoms.rattle(0.02, seed=turn)
            start = time.perf_counter()
            calculator.get_forces(atoms)
            times[name].append(1000 * (time.perf_counter() - start))
    # the first call makes the batch
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def drift(calculator: Calculator) -> float:
    """meV/atom/ps of the total energy in NVE of 64 ions that start with 300 K."""
    atoms = rock_salt(2)
    set_thermal_momenta(atoms, 600, 0)
    Stationary(atoms, preserve_temperature=False)
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    dynamics.run(100)
    before = atoms.get_total_energy()
    dynamics.run(500)
    return float(1000 * (atoms.get_total_energy() - before) / len(atoms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="evenfield-1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    model = model_zoo.load(arguments.model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"model": model.reference}
        for each in SETS:
            found[each] = errors(model, arguments.data, folder, each)
            print(each, found[each], flush=True)
        with_head, own_errors = head_of_rock_salt(model, folder)
        calculators: dict[str, Calculator] = {
            "derivatives": with_head.calculator(level_of_theory=LEVEL),
            "head": with_head.direct_force_calculator(level_of_theory=LEVEL),
        }
        found["rock salt"] = {
            "errors": own_errors,
            "milliseconds": {8 * size**3: milliseconds(calculators, size) for size in SIZES},
            "drift": {name: drift(each) for name, each in calculators.items()},
        }
        print(found["rock salt"])
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
