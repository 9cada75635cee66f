"""Properties of crystals by somebody else's benchmark, for evenfield-1 and for peers with weights.

matcalc (Materials Virtual Lab, BSD-3) computes equations of state, elastic constants and phonons
through the public interface of any ASE calculator. Nothing here was written by us but the list of
crystals and the table. Each elastic constant of ours is also compared with `evenfield check
elastic`, which is another implementation.

    python -m venv REFEREE && REFEREE/bin/pip install matcalc chgnet sevenn -e .
    OMP_NUM_THREADS=1 REFEREE/bin/python benchmarks/referees.py benchmarks/results/referees.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT


# Crystals with a lattice parameter to start from, in A.
CRYSTALS = {
    "Cu": ("fcc", 3.61),
    "Al": ("fcc", 4.05),
    "W": ("bcc", 3.17),
    "Si": ("diamond", 5.43),
    "NaCl": ("rocksalt", 5.64),
    "MgO": ("rocksalt", 4.21),
}
METALS = ("Cu", "Al")
# matcalc's default of 6 % shear biases C44; its default relaxation leaves the cell strained
STRAINS = (-0.002, -0.001, 0.001, 0.002)
FMAX = 1e-3  # eV/A


def calculators(model: str, level: str) -> dict[str, Calculator]:
    """The calculators by name; peers that are not installed are left out."""
    from evenfield import model_zoo

    found: dict[str, Calculator] = {"EMT": EMT()}
    loaded = model_zoo.load(model)
    found[loaded.reference] = loaded.calculator(
        level_of_theory=level, dtype="float64", warn_outside=False
    )
    try:
        from chgnet.model.dynamics import CHGNetCalculator

        found["CHGNet 0.3.0"] = CHGNetCalculator(use_device="cpu")
    except ImportError:
        print("chgnet is not installed")
    try:
        from sevenn.calculator import SevenNetCalculator

        found["SevenNet-0"] = SevenNetCalculator("7net-0", device="cpu")
    except ImportError:
        print("sevenn is not installed")
    return found


def refereed(calculator: Calculator, name: str, phonons: bool) -> dict[str, Any]:
    """What matcalc says of one crystal: A, GPa, k per atom."""
    import matcalc
    from ase.units import _k, _Nav
    from pymatgen.io.ase import AseAtomsAdaptor

    structure, edge = CRYSTALS[name]
    atoms = bulk(name, structure, a=edge, cubic=True)
    crystal = AseAtomsAdaptor.get_structure(atoms)
    started = time.perf_counter()
    curve = matcalc.EOSCalc(calculator, fmax=FMAX).calc(crystal)
    elasticity = matcalc.ElasticityCalc(
        calculator,
        fmax=FMAX,
        norm_strains=STRAINS,
        shear_strains=STRAINS,
        # silicon's atoms move against each other when it is sheared
        relax_deformed_structures=True,
        units_GPa=True,
    ).calc(crystal)
    tensor = elasticity["elastic_tensor"].voigt
    row = {
        "edge": float(elasticity["a"]),
        "bulk_modulus": float(curve["bulk_modulus_bm"]),
        "c11": float(tensor[0, 0]),
        "c12": float(tensor[0, 1]),
        "c44": float(tensor[3, 3]),
    }
    if phonons:
        found = matcalc.PhononCalc(calculator, fmax=FMAX, write_phonon=False).calc(crystal)
        thermal = found["thermal_properties"]
        place = [abs(at - 300) for at in thermal["temperatures"]].index(0)
        per_atom = len(found["phonon"].primitive)
        row["heat_capacity"] = float(thermal["heat_capacity"][place] / (per_atom * _k * _Nav))
        found["phonon"].run_mesh([11, 11, 11])
        row["lowest_frequency"] = float(found["phonon"].mesh.frequencies.min())
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def of_our_check(calculator: Calculator, name: str) -> list[float] | None:
    """C11, C12 and C44 in GPa by `evenfield check elastic`, from the stress."""
    from evenfield.diagnostics.checks.elastic import elastic_constants

    found = elastic_constants(calculator, name, CRYSTALS[name][0])
    if found is None:
        return None
    return [found.by_stress.c11, found.by_stress.c12, found.by_stress.c44]


def main() -> None:
    """Ask the referee, and write the rows after each crystal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--level", default="mp_pbe")
    parser.add_argument("--crystals", nargs="+", default=list(CRYSTALS), choices=list(CRYSTALS))
    parser.add_argument("--phonons", nargs="*", default=["Cu", "Si"], choices=list(CRYSTALS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rows: list[dict[str, Any]] = []
    for title, calculator in calculators(arguments.model, arguments.level).items():
        for name in arguments.crystals:
            if title == "EMT" and name not in METALS:
                continue
            row = {"calculator": title, "crystal": name}
            try:
                row |= refereed(calculator, name, name in arguments.phonons)
            except Exception as error:
                # a crystal that falls apart is a result
                row["failed"] = f"{type(error).__name__}: {error}"[:200]
            if title == "EMT" or title.startswith("evenfield"):
                row["own_check"] = of_our_check(calculator, name)
            rows.append(row)
            print(json.dumps(row))
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
