"""Heads on the frozen features of evenfield-1: charges from dipoles, dipoles, and a class.

    python benchmarks/property_heads.py [--structures 1200] [--seeds 0 1 2 3 4] [--derivatives]

Molecules of the generator of the demo data, neutral and closed-shell, labelled by GFN1-xTB. A fifth
of them is held out by composition, once for each seed; figures are the median over the seeds, with
the smallest and the largest.

- Charges that a head finds from dipoles alone, against the charges of xTB, which it never saw.
- Dipoles of the held-out molecules: mean absolute error over the spread, component by component.
- The same with the dipoles that the charges of xTB have as points. xTB adds the dipoles of its
  orbitals to these, which charges at the atoms cannot carry.
- A class: whether the gap between the orbitals of xTB is below the median. Half of the molecules
  are stretched and rattled, so that one composition has several gaps. The same fit on composition,
  and on sorted distances.

`--derivatives` adds dipoles of atoms: the derivatives of the readout's features by edge vectors,
summed for each structure. Minutes. Writes results/property_heads.json.
"""

from __future__ import annotations

import argparse
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
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial.distance import pdist

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.demo.clusters import molecule
from evenfield.data_pipelines.demo.geometry import has_close_contact
from evenfield.data_pipelines.demo.oracles import GFN1_LEVEL, RejectedStructure, label
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.figures import class_figures, flat, number_figures
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.logistic import logistic
from evenfield.finetune.property_heads.ridge import ridge
from evenfield.finetune.property_heads.split import groups_of, held_out
from evenfield.model_zoo.heads.features import atom_features
from evenfield.model_zoo.hub.load import LoadedModel


RESULT = Path(__file__).parent / "results" / "property_heads.json"
# more than the molecules of the generator have
MOST_DISTANCES = 120
Frames = list[Atoms]


def quiet(text: str) -> None:
    """Say nothing."""


def configured(*words: str) -> HeadConfig:
    return load_settings(HeadConfig, None, list(words))


# --- structures and labels


def drawn(seed: int) -> Atoms | None:
    """A molecule, its bonds stretched at random in half of the cases; None for an open shell."""
    rng = np.random.default_rng([7, seed])
    atoms = molecule(rng)
    if len(atoms) < 2 or atoms.numbers.sum() % 2:
        return None
    if rng.random() < 0.5:
        atoms.positions *= rng.uniform(0.95, 1.25)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    return None if has_close_contact(atoms) else atoms


def gap(atoms: Atoms) -> float:
    """Energy of the lowest empty orbital above the highest full one, eV."""
    from tblite.interface import Calculator

    calculator = Calculator(GFN1_LEVEL, atoms.numbers, atoms.positions / units.Bohr)
    calculator.set("verbosity", 0)
    found = calculator.singlepoint()
    energies = np.asarray(found.get("orbital-energies"))
    num_full = round(float(np.sum(found.get("orbital-occupations")))) // 2
    return float(energies[num_full] - energies[num_full - 1]) * units.Hartree


def labelled_molecules(count: int) -> Frames:
    """Molecules with xTB's charges and dipole as results, and its gap and point dipole as info."""
    frames: Frames = []
    seed = 0
    while len(frames) < count:
        atoms = drawn(seed)
        seed += 1
        if atoms is None:
            continue
        try:
            atoms = label(atoms, GFN1_LEVEL)
            atoms.info["gap"] = gap(atoms)
        except (RejectedStructure, RuntimeError):
            # of the calculation that did not converge
            continue
        atoms.info["point_dipole"] = atoms.calc.results["charges"] @ atoms.positions
        frames.append(atoms)
    median = statistics.median(atoms.info["gap"] for atoms in frames)
    for atoms in frames:
        atoms.info["gap_class"] = "small" if atoms.info["gap"] < median else "large"
    return frames


# --- charges and dipoles


def charge_figures(model: LoadedModel, path: Path, frames: Frames, words: list[str]) -> Any:
    """Errors of a charge or dipole head on held-out molecules, and of the charges in it."""
    config = configured(*words)
    head = fit_head(model, path, config, say=quiet)
    test = [atoms for atoms, out in zip(frames, held_out(frames, config, path), strict=True) if out]
    features = atom_features(model.potential, test, config.head_features)
    charges = [head.charges(own, atoms) for own, atoms in zip(features, test, strict=True)]
    of_charges = number_figures(flat(charges), flat([a.calc.results["charges"] for a in test]))

    key = "dipole" if config.head == "charges" else config.label_key
    known = [a.info[key] if key in a.info else a.calc.results[key] for a in test]
    found = [q @ a.positions for q, a in zip(charges, test, strict=True)]
    of_dipoles = number_figures(flat(found), flat(known))
    return {
        "charge_r": of_charges["r"],
        "charge_mae": of_charges["mae"],
        "dipole_mae_over_spread": of_dipoles["mae"] / of_dipoles["spread"],
        "dipole_r": of_dipoles["r"],
    }


def derivative_figures(
    model: LoadedModel, path: Path, frames: Frames, more: np.ndarray, seed: int
) -> Any:
    """The same with derivatives of features, `more` (S, 3, d), next to charges."""
    config = configured("head=dipole", f"seed={seed}")
    mask = held_out(frames, config, path)
    elements = np.unique(np.concatenate([atoms.numbers for atoms in frames]))
    rows = []
    parts = list(atom_features(model.potential, frames))
    centre = np.concatenate(parts).mean(axis=0)
    size = np.concatenate(parts).std(axis=0)
    atom_rows = []
    for own, atoms in zip(parts, frames, strict=True):
        one_hot = (atoms.numbers[:, None] == elements).astype(float)
        wide = np.hstack([(own - centre) / size, one_hot])
        atom_rows.append(wide - wide.mean(axis=0))
    for wide, atoms, extra in zip(atom_rows, frames, more, strict=True):
        rows.append(np.hstack([atoms.positions.T @ wide, extra]))
    known = [atoms.calc.results["dipole"] for atoms in frames]
    train = np.flatnonzero(~mask)
    test = np.flatnonzero(mask)
    found = ridge(np.concatenate([rows[s] for s in train]), flat([known[s] for s in train]))
    charges = [atom_rows[s] @ found.weights[: atom_rows[s].shape[1]] for s in test]
    of_charges = number_figures(
        flat(charges), flat([frames[s].calc.results["charges"] for s in test])
    )
    of_dipoles = number_figures(
        flat([rows[s] @ found.weights for s in test]), flat([known[s] for s in test])
    )
    return {
        "charge_r": of_charges["r"],
        "dipole_mae_over_spread": of_dipoles["mae"] / of_dipoles["spread"],
    }


def derivatives(model: LoadedModel, frames: Frames) -> np.ndarray:
    """Sum over the edges of a structure of the derivatives of the readout's features (S, 3, d)."""
    potential = model.potential
    potential.requires_grad_(False)
    levels = potential.config.levels_of_theory
    found = []
    for first in range(0, len(frames), 64):
        part = frames[first : first + 64]
        structures = [Structure.from_atoms(atoms, levels[0], "molecule") for atoms in part]
        batch = Batch.from_structures(structures, potential.cutoff, levels)
        vectors, tiles = potential.edge_vectors(batch)
        phi = potential.features(batch.atomic_numbers, vectors, tiles)
        owner = batch.structure_index[tiles.slot_receiver]
        columns = []
        for column in range(phi.shape[1]):
            (slope,) = torch.autograd.grad(phi[:, column].sum(), vectors, retain_graph=True)
            columns.append(torch.zeros(len(part), 3).index_add(0, owner, slope))
        found.append(torch.stack(columns, dim=2).double().numpy())
    return np.concatenate(found)


# --- the class


def composition(atoms: Atoms, elements: np.ndarray) -> np.ndarray:
    """Share of each element (Z,)."""
    return (atoms.numbers[:, None] == elements).mean(axis=0)


def distances(atoms: Atoms) -> np.ndarray:
    """All distances in ascending order, in A, with zeros at the end."""
    ordered = np.sort(pdist(atoms.positions))[:MOST_DISTANCES]
    return np.pad(ordered, (0, MOST_DISTANCES - len(ordered)))


def class_baseline(
    rows: np.ndarray, frames: Frames, mask: np.ndarray, config: HeadConfig
) -> dict[str, float]:
    """The same convex fit and split on other rows (S, P)."""
    size = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(size > 0, size, 1.0)
    classes = np.array([atoms.info["gap_class"] == "small" for atoms in frames]).astype(int)
    groups = [group for group, out in zip(groups_of(frames, config), mask, strict=True) if not out]
    found = logistic(scaled[~mask], classes[~mask], 2, groups, config.seed)
    return class_figures(np.exp(found.log_probabilities(scaled[mask])), classes[mask])


def class_table(model: LoadedModel, path: Path, frames: Frames, seed: int) -> dict[str, Any]:
    """Figures of the head, and of the same fit on other inputs."""
    words = ["head=class", "key=gap_class", f"seed={seed}"]
    config = configured(*words)
    mask = held_out(frames, config, path)
    elements = np.unique(np.concatenate([atoms.numbers for atoms in frames]))
    shares = np.array([composition(atoms, elements) for atoms in frames])
    far = np.array([distances(atoms) for atoms in frames])
    inputs = {"composition": shares, "distances": far, "both": np.hstack([shares, far])}
    table = {name: class_baseline(rows, frames, mask, config) for name, rows in inputs.items()}
    for features in ("readout", "network"):
        own = configured(*words, f"features={features}")
        table[features] = fit_head(model, path, own, say=quiet).description.errors
    return table


# --- all of it


def over_seeds(measure: Callable[[int], dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Median, smallest and largest of each figure."""
    found = [measure(seed) for seed in seeds]
    return {
        name: [
            round(pick([one[name] for one in found]), 4) for pick in (statistics.median, min, max)
        ]
        for name in found[0]
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--structures", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--derivatives", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    started = time.perf_counter()
    frames = labelled_molecules(options.structures)
    model = model_zoo.load(options.model)
    seeds = options.seeds
    spread = np.std([atoms.calc.results["dipole"] for atoms in frames])
    beyond = [atoms.calc.results["dipole"] - atoms.info["point_dipole"] for atoms in frames]
    result: dict[str, Any] = {
        "model": model.reference,
        "structures": len(frames),
        "compositions": len({atoms.get_chemical_formula(empirical=True) for atoms in frames}),
        "elements": len(np.unique(np.concatenate([atoms.numbers for atoms in frames]))),
        "seeds": seeds,
        "dipole that point charges lack, MAE over spread": round(
            float(np.abs(beyond).mean() / spread), 4
        ),
    }
    point = ["head=dipole", "key=point_dipole", "unit=e*A"]
    cases = {
        "dipole head, network": ["head=dipole"],
        "dipole head, readout": ["head=dipole", "features=readout"],
        "dipole head, labels of point charges": point,
        "charge head, network": ["head=charges"],
        "charge head, readout": ["head=charges", "features=readout"],
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.traj"
        for atoms in frames:
            atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
        ase.io.write(path, frames)
        for name, words in cases.items():
            result[name] = over_seeds(
                lambda seed, words=words: charge_figures(
                    model, path, frames, [*words, f"seed={seed}"]
                ),
                seeds,
            )
            print(name, result[name], flush=True)
        if options.derivatives:
            name = "dipole head, network, and derivatives"
            more = derivatives(model, frames)
            more /= more.std()
            result[name] = over_seeds(
                lambda seed: derivative_figures(model, path, frames, more, seed), seeds
            )
            print(name, result[name], flush=True)

        tables = [class_table(model, path, frames, seed) for seed in seeds]
        for name in tables[0]:
            own = over_seeds(lambda seed, name=name: tables[seeds.index(seed)][name], seeds)
            result[f"gap below the median, {name}"] = own
            print(name, own, flush=True)
    result["seconds"] = round(time.perf_counter() - started)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
