"""Two atoms of an element by somebody else's benchmark, for evenfield-1 and for peers with weights.

MLIP Arena (Apache-2.0) pulls two atoms apart in steps of 0.01 A, from 0.9 covalent radii to 3.1 van
der Waals radii, and judges the curve: how often the force changes its sign (once for a sound pair),
the tortuosity (1 for a curve with one minimum), jumps of the energy, and how far forces are from
the slope of the energy. Nothing here was written by us but the list of elements and the table.

    python -m venv REFEREE && REFEREE/bin/pip install mlip-arena chgnet sevenn -e .
    OMP_NUM_THREADS=1 REFEREE/bin/python benchmarks/referee_of_pairs.py \
        benchmarks/results/referee_of_pairs.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from referees import calculators


ELEMENTS = ("H", "N", "O", "Na", "Al", "Si", "Cl", "Cu")
# The columns of MLIP Arena that a reader can make something of.
MEASURES = {
    "force-flip-times": "force_changes_sign",
    "tortuosity": "tortuosity",
    "energy-jump": "energy_jump_eV",
    "conservation-deviation": "force_off_slope_eV_per_A",
}


def judged(calculator: Any, symbols: list[str]) -> dict[str, dict[str, float]]:
    """Element -> what MLIP Arena says of its pair."""
    from mlip_arena.flows.diatomics import analyze, homonuclear_diatomic

    with tempfile.TemporaryDirectory() as folder:
        for symbol in symbols:
            # `fn` is the plain function of a task of Prefect, which needs no server
            homonuclear_diatomic.fn(symbol, calculator, Path(folder))
        table = analyze(Path(folder))
    rows = {}
    for row in table.to_dict("records"):
        symbol = row["name"][: len(row["name"]) // 2]
        rows[symbol] = {ours: float(row[theirs]) for theirs, ours in MEASURES.items()}
    return rows


def main() -> None:
    """Ask the referee, and write the table after each calculator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--level", default="mp_pbe")
    parser.add_argument("--elements", nargs="+", default=list(ELEMENTS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    found = {}
    for title, calculator in calculators(arguments.model, arguments.level).items():
        symbols = arguments.elements
        if title == "EMT":
            symbols = [symbol for symbol in symbols if symbol in ("Al", "Cu")]
        found[title] = judged(calculator, symbols)
        print(title, json.dumps(found[title]))
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
