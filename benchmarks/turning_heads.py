"""Heads that turn with the structure on evenfield-1: dipoles, polarizabilities, left and right.

    python benchmarks/turning_heads.py [--structures 1200] [--seeds 0 1 2 3 4]

The molecules are those of `property_heads.py`, with polarizabilities of GFN1-xTB from its dipoles
in fields of 2e-3 atomic units. A fifth is held out by composition, once for each seed; figures are
the median over the seeds, with the smallest and the largest.

- Dipoles: charges alone, with atomic dipoles, and with random functions.
- Polarizabilities: mean absolute error over the spread, and the mean of |error| / |label|.
- One molecule at a time: dipole, polarizability and energy in a field, on geometries that the fit
  has not seen, next to xTB in the same field.
- Left and right: carbon with four different substituents among H, F, O-H, Cl, S-H, Br, I and N-H2,
  rattled. The label is 1 for R and -1 for S by the priorities of Cahn, Ingold and Prelog. Once
  whole compositions are held out, once arrangements and geometries of known ones. The control is a
  class head on invariant features, with both images of every molecule.

Minutes. Adds to results/property_heads.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule as g2_molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, covalent_radii
from property_heads import configured, labelled_molecules, over_seeds, quiet

from evenfield import model_zoo
from evenfield.core.units import COULOMB
from evenfield.data_pipelines.demo.oracles import GFN1_LEVEL
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.save import save_head
from evenfield.finetune.property_heads.split import held_out
from evenfield.model_zoo.hub.load import LoadedModel


RESULT = Path(__file__).parent / "results" / "property_heads.json"
Frames = list[Atoms]
# atomic units
FIELD_STEP = 2e-3
# of the largest entry; a calculation that converged to two states in two fields is no label
MOST_ASYMMETRY = 0.02
SINGLE = ("H2O", "CH3OH", "HCN", "H2CO", "CH3CN", "C2H4")
# atomic units of a field in V/A
FIELD_UNIT = units.Hartree / units.Bohr


# --- xTB in a field


def in_field(atoms: Atoms, field: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy in eV and dipole (3,) in e*A in a field (3,) in V/A."""
    from tblite.interface import Calculator
    from tblite.library import ffi

    calculator = Calculator(GFN1_LEVEL, atoms.numbers, atoms.positions / units.Bohr)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 0.01)
    strength = np.ascontiguousarray(field / FIELD_UNIT, dtype=float)
    # the library keeps the address, so the array must live as long as the calculation
    calculator.add("electric-field", ffi.cast("double*", strength.ctypes.data))
    found = calculator.singlepoint()
    return float(found.get("energy")) * units.Hartree, np.array(found.get("dipole")) * units.Bohr


def polarizability(atoms: Atoms) -> np.ndarray | None:
    """(3, 3) in e*A^2/V; None where it is not symmetric, or a field is too much for the SCF."""
    step = FIELD_STEP * FIELD_UNIT
    try:
        rows = [
            (in_field(atoms, step * unit)[1] - in_field(atoms, -step * unit)[1]) / (2 * step)
            for unit in np.eye(3)
        ]
    except RuntimeError:
        return None
    found = np.array(rows)
    if np.abs(found - found.T).max() > MOST_ASYMMETRY * np.abs(found).max():
        return None
    symmetric: np.ndarray = 0.5 * (found + found.T)
    return symmetric


def with_polarizability(frames: Frames) -> Frames:
    """Those structures that have one, in their info."""
    kept = []
    for atoms in frames:
        tensor = polarizability(atoms)
        if tensor is not None:
            atoms.info["alpha"] = tensor
            kept.append(atoms)
    return kept


# --- molecules of all sorts


def errors(model: LoadedModel, path: Path, words: list[str]) -> dict[str, float]:
    """Errors of a head on what it held out."""
    found = dict(fit_head(model, path, configured(*words), say=quiet).description.errors)
    return {"mae_over_spread": found["mae"] / found["spread"], **found}


# --- one molecule at a time


def geometries(name: str, count: int, rng: np.random.Generator) -> Frames:
    """A molecule of the G2 set, rattled by 0.04 A and turned."""
    frames = []
    for _ in range(count):
        known = g2_molecule(name)
        atoms = Atoms(known.symbols, known.positions + rng.normal(0, 0.04, (len(known), 3)))
        atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
        atoms.info["level_of_theory"] = GFN1_LEVEL
        _, dipole = in_field(atoms, np.zeros(3))
        atoms.calc = SinglePointCalculator(atoms, dipole=dipole)
        frames.append(atoms)
    return with_polarizability(frames)


def single(model: LoadedModel, folder: Path, name: str, count: int = 60) -> dict[str, float]:
    """Figures of the heads of one molecule on geometries that were held out."""
    rng = np.random.default_rng(3)
    frames = geometries(name, count, rng)
    path = folder / f"{name}.traj"
    ase.io.write(path, frames)
    dipole = configured("head=dipole", "features=equivariant", "split=structure")
    alpha = configured("head=polarizability", "key=alpha", "unit=e*A^2/V", "split=structure")
    out = folder / name
    save_head(fit_head(model, path, dipole, say=quiet), model, "model", out)
    save_head(fit_head(model_zoo.load(out), path, alpha, say=quiet), model_zoo.load(out), out, out)
    fitted = model_zoo.load(out)

    mask = held_out(frames, alpha, path)
    field = np.array([0.2, -0.1, 0.3])
    relative = []
    of_dipoles = []
    of_energies = []
    for atoms in [one for one, test in zip(frames, mask, strict=True) if test]:
        known = atoms.info["alpha"]
        found = fitted.predict(atoms, "alpha")
        relative.append(np.linalg.norm(found - known) / np.linalg.norm(known))
        of_dipoles.append(np.abs(fitted.predict(atoms, "dipole") - atoms.calc.results["dipole"]))
        change = in_field(atoms, field)[0] - in_field(atoms, np.zeros(3))[0]
        without = fitted.calculator(warn_outside=False)
        within = fitted.calculator(field=field, warn_outside=False)
        ours = within.get_potential_energy(atoms) - without.get_potential_energy(atoms)
        of_energies.append(abs(ours - change))
    spread = np.std([atoms.calc.results["dipole"] for atoms in frames])
    return {
        "polarizability, relative": round(float(np.mean(relative)), 4),
        "polarizability, largest relative": round(float(np.max(relative)), 4),
        "dipole, MAE over spread": round(float(np.mean(of_dipoles) / max(spread, 1e-3)), 4),
        "energy in 0.37 V/A, MAE in meV": round(1000 * float(np.mean(of_energies)), 2),
    }


# --- left and right


TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
# a substituent by its heavy atom, and the hydrogen atoms on it
HYDROGENS = {"H": 0, "F": 0, "Cl": 0, "Br": 0, "I": 0, "O": 1, "S": 1, "N": 2}


def substituted(symbols: list[str], rng: np.random.Generator) -> Atoms:
    """Carbon with four substituents, in info their arrangement: `hand` is 1 for R, -1 for S."""
    found = ["C"]
    positions = [np.zeros(3)]
    places = []
    for symbol, corner in zip(symbols, TETRAHEDRON, strict=True):
        places.append(len(found))
        radius = covalent_radii[atomic_numbers[symbol]]
        place = corner * (covalent_radii[6] + radius)
        found.append(symbol)
        positions.append(place)
        across = np.cross(corner, rng.normal(size=3))
        across /= np.linalg.norm(across)
        for side in (1, -1)[: HYDROGENS[symbol]]:
            found.append("H")
            direction = 0.33 * corner + 0.94 * side * across
            positions.append(place + (radius + covalent_radii[1]) * direction)
    atoms = Atoms(found, positions)
    atoms.positions += rng.normal(0, 0.05, (len(atoms), 3))

    arms = atoms.positions[places] - atoms.positions[0]
    first, second, third, _ = arms[np.argsort([-atomic_numbers[symbol] for symbol in symbols])]
    hand = -float(np.sign(first @ np.cross(second, third)))
    atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
    atoms.info |= {"hand": hand, "side": "R" if hand > 0 else "S", "level_of_theory": "drawn"}
    return atoms


def mirrored(atoms: Atoms) -> Atoms:
    """The other enantiomer."""
    copy = atoms.copy()
    copy.positions *= -1
    copy.info["hand"] = -atoms.info["hand"]
    copy.info["side"] = "S" if atoms.info["side"] == "R" else "R"
    return copy


def hands(model: LoadedModel, folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Share of right signs on molecules that were held out, and of right classes."""
    rng = np.random.default_rng(0)
    quadruples = list(itertools.combinations(HYDROGENS, 4))
    frames = [
        substituted(list(rng.permutation(four)), rng) for _ in range(12) for four in quadruples
    ]
    one = folder / "one.traj"
    both = folder / "both.traj"
    ase.io.write(one, frames)
    ase.io.write(both, [image for atoms in frames for image in (atoms, mirrored(atoms))])
    halogens = [
        substituted(list(rng.permutation(four)), rng)
        for _ in range(60)
        for four in itertools.combinations(("H", "F", "Cl", "Br", "I"), 4)
    ]
    few = folder / "halogens.traj"
    ase.io.write(few, halogens)

    label = ["head=pseudoscalar", "key=hand", "unit=sign"]
    result: dict[str, Any] = {"molecules": len(frames), "halomethanes": len(halogens)}

    def measured(path: Path, words: list[str]) -> dict[str, Any]:
        return over_seeds(
            lambda seed: (
                fit_head(
                    model, path, configured(*words, f"seed={seed}"), say=quiet
                ).description.errors
            ),
            seeds,
        )

    arrangements = [*label, "split=structure"]
    result["unseen compositions"] = measured(one, label)
    result["unseen compositions, 256 functions"] = measured(one, [*label, "num_functions=256"])
    result["unseen arrangements"] = measured(one, arrangements)
    result["halomethanes, unseen arrangements"] = measured(few, arrangements)
    result["control: class on invariants"] = measured(both, ["head=class", "key=side"])

    head = fit_head(model, one, configured(*label), say=quiet)
    out = folder / "handed"
    save_head(head, model, "model", out)
    fitted = model_zoo.load(out)
    flips = []
    for atoms in frames[:100]:
        own = fitted.predict(atoms, "hand")
        flips.append(abs(own + fitted.predict(mirrored(atoms), "hand")) / abs(own))
    result["sign flip, largest relative deviation"] = float(f"{max(flips):.1e}")
    return result


# --- all of it


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--structures", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--hands-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    started = time.perf_counter()
    model = model_zoo.load(options.model)
    seeds = options.seeds
    found: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        found[name] = value
        print(name, value, flush=True)
        # of an earlier run stays what is not measured again
        result = json.loads(options.out.read_text()) if options.out.exists() else {}
        result["heads that turn"] = result.get("heads that turn", {}) | found
        options.out.write_text(json.dumps(result, indent=1) + "\n")

    with TemporaryDirectory() as name:
        folder = Path(name)
        note("left and right", hands(model, folder, seeds))
        if options.hands_only:
            return found
        note("one molecule", {one: single(model, folder, one) for one in SINGLE})

        frames = with_polarizability(labelled_molecules(options.structures))
        path = folder / "molecules.traj"
        for atoms in frames:
            atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
        ase.io.write(path, frames)
        note("structures", len(frames))
        turning = ["head=dipole", "features=equivariant"]
        alpha = ["head=polarizability", "key=alpha", "unit=e*A^2/V"]
        cases: dict[str, list[str]] = {
            "dipole, charges alone": ["head=dipole"],
            "dipole, with atomic dipoles": turning,
            "dipole, and 256 random functions": [*turning, "num_functions=256"],
            "polarizability": alpha,
            "polarizability, and 256 random functions": [*alpha, "num_functions=256"],
        }
        for case, words in cases.items():
            measure: Callable[[int], dict[str, float]] = lambda seed, words=words: errors(  # noqa: E731
                model, path, [*words, f"seed={seed}"]
            )
            note(case, over_seeds(measure, seeds))
        volumes = [np.trace(atoms.info["alpha"]) / 3 * COULOMB for atoms in frames]
        note("median polarizability in A^3", round(statistics.median(volumes), 3))
    note("seconds", round(time.perf_counter() - started))
    return found


if __name__ == "__main__":
    main()
