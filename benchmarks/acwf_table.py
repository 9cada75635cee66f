"""The table of elemental crystals that `evenfield check sanity` compares with, from ACWF's data.

    python benchmarks/acwf_table.py acwf_vasp.extxyz.gz diagnostics/sanity/reference/elements.csv

In: the unaries of E. Bosoni et al., Nat. Rev. Phys. 6, 45 (2024), MIT licence: PBE without spin,
seven volumes for each of fcc, bcc, simple cubic and diamond. Out: volume, bulk modulus and energy
above the lowest of the four, from a fit of Birch and Murnaghan.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from ase.io import read

from evenfield.diagnostics.sanity.equation_of_state import fit_birch_murnaghan


NAMES = {"FCC": "fcc", "BCC": "bcc", "SC": "sc", "Diamond": "diamond"}


def main(source: Path, table: Path) -> None:
    """Fit each curve, and write a row for each element and phase."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for atoms in read(source, index=":", format="extxyz"):
        if atoms.info["config_type"] != "eos_unaries":
            continue
        phase = NAMES[atoms.info["group"].rpartition("/")[2]]
        point = (atoms.get_volume() / len(atoms), atoms.info["REF_energy"] / len(atoms))
        curves[atoms.get_chemical_symbols()[0], phase].append(point)

    fits = {}
    for key, points in curves.items():
        volumes, energies = np.array(sorted(points)).T
        fits[key] = fit_birch_murnaghan(volumes, energies)

    lowest: dict[str, float] = {}
    for (symbol, _), fit in fits.items():
        lowest[symbol] = min(fit.energy, lowest.get(symbol, np.inf))

    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["element", "phase", "volume_A3", "bulk_modulus_GPa", "above_lowest_meV"])
        for symbol, phase in sorted(fits, key=lambda key: (atomic_numbers[key[0]], key[1])):
            fit = fits[symbol, phase]
            above = 1000 * (fit.energy - lowest[symbol])
            row = [symbol, phase, f"{fit.volume:.3f}", f"{fit.bulk_modulus:.2f}", f"{above:.1f}"]
            writer.writerow(row)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
