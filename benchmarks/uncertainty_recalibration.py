"""How far twenty structures restore the coverage of radii on data that a model has never seen.

    python benchmarks/uncertainty_recalibration.py MODEL FOLDER --out FILE.json [--level mp_pbe]
        [--sets water_dp ...] [--seeds 0 1 2] [--structures 20]

FOLDER holds the sets as NAME.extxyz.gz, with labels in REF_forces and REF_stress. Up to 220
structures with forces are taken from each, evenly spaced, and asked for at one level of theory of
MODEL. For each seed, the scales of its radii are made anew from some of them, as `evenfield
finetune attach --recalibrate` does, and the others are counted. Energies have another zero, and
are left out of the result.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import time
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from uncertainty_quality import part

from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.checks.trust import coverage_rows
from evenfield.finetune.safety.uncertainty import Observed, observe, recalibrated
from evenfield.model_zoo import LoadedModel, load
from evenfield.model_zoo.uncertainty.record import LevelUncertainty


SETS = (
    "mol_ethanol",
    "water_dp",
    "mad_sub1000",
    "ligeps",
    "li_al",
    "fitsnap_wbe",
    "perovskite_leadfree",
)
MOST_STRUCTURES = 220
# of the structures together; twenty of the largest would be more than half of the time
MOST_ATOMS = 14_000


def main() -> None:
    """Write one JSON object, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or name of a model with a record of uncertainty")
    parser.add_argument("folder", type=Path, help="folder with the sets")
    parser.add_argument("--level", help="level of theory; by default that of the model")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--structures", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    model = load(arguments.model)
    level = model.level_to_use(arguments.level)
    own = model.uncertainties[level]
    result: dict[str, object] = {
        "model": model.reference,
        "level": level,
        "structures to calibrate": arguments.structures,
    }
    for name in arguments.sets:
        started = time.process_time()
        structures = structures_of(arguments.folder / f"{name}.extxyz.gz", model, level)
        seen = observe(model.potential, own, structures)
        draws = []
        for seed in arguments.seeds:
            chosen = np.zeros(len(structures), bool)
            order = np.random.default_rng(seed).permutation(len(structures))
            chosen[order[: arguments.structures]] = True
            few = [one for one, is_chosen in zip(structures, chosen, strict=True) if is_chosen]
            new = recalibrated(model.potential, own, few, split="valid")
            judged = part(seen, ~chosen)
            draws.append({"before": counted(own, judged), "after": counted(new, judged)})
        labelled = np.isfinite(seen.error)
        result[name] = {
            "structures": len(structures),
            "groups": len(np.unique(seen.groups)),
            "atoms": int(labelled.sum()),
            "inside": round(float(seen.inside.mean()), 4),
            "force_mae": round(float(np.abs(seen.force_error[labelled]).mean()), 4),
            "seconds": round(time.process_time() - started, 1),
            "draws": draws,
        }
        print(name, json.dumps(result[name]))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def structures_of(path: Path, model: LoadedModel, level: str) -> list[Structure]:
    """Evenly spaced structures with forces, of elements that the level has learned, as of it."""
    # decompressed first: ASE seeks backwards in a compressed stream
    with gzip.open(path, "rt") as file:
        frames = ase.io.read(io.StringIO(file.read()), ":", format="extxyz")
    known = set(model.record.trained_symbols(level))
    usable = [
        atoms
        for atoms in frames
        if "REF_forces" in atoms.arrays and known.issuperset(atoms.get_chemical_symbols())
    ]
    mean_size = np.mean([len(atoms) for atoms in usable])
    number = min(len(usable), MOST_STRUCTURES, int(MOST_ATOMS / mean_size))
    places = np.linspace(0, len(usable) - 1, number).astype(int)
    return [structure(usable[place], level, f"{path.stem} {place}") for place in places]


def structure(atoms: Atoms, level: str, name: str) -> Structure:
    """One structure with its forces and, where it has one, its stress."""
    labels = {"energy": float(atoms.info["REF_energy"]), "forces": atoms.arrays["REF_forces"]}
    if "REF_stress" in atoms.info and atoms.pbc.all():
        xx, yy, zz, yz, xz, xy = atoms.info["REF_stress"]
        labels["stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    group = str(atoms.info.get("group", name))
    return Structure.from_atoms(atoms, level, name, group, **labels)


def counted(own: LevelUncertainty, seen: Observed) -> dict[str, float | None]:
    """Covered shares and median radii of forces and, where there is one, of the stress."""
    found: dict[str, float | None] = {}
    for row in coverage_rows(own, seen):
        if row.by != "all" or row.what == "energies":
            continue
        for ball in row.balls:
            name = f"{row.what} {100 * ball.coverage:g} %"
            found[name] = None if ball.share is None else round(ball.share, 4)
            radius = ball.median_radius
            found[f"{name}, median radius"] = None if radius is None else round(radius, 5)
    return found


if __name__ == "__main__":
    main()
