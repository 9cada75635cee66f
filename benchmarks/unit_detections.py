"""Which wrong units and signs does the check of a source notice?

    python benchmarks/unit_detections.py FILE [FILE ...]

Each FILE has its labels in REF_* columns, as the recipe `ref_labels` reads them.  Correct files
are made wrong in one way at a time.  Prints a Markdown table: the tests that refused each wrong
version, `-` where none did, blank where the file lacks the label.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from evenfield.core.labels import LABELS
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.checks.unit_check import examine, sample_structures
from evenfield.data_pipelines.convert.convert import ConvertConfig
from evenfield.data_pipelines.structure import Structure


SHORT = {
    "bond lengths": "b",
    "net force": "n",
    "bonds pull back": "p",
    "energy against forces": "F",
    "energy against stress": "S",
    "size of the pressure": "P",
    "pressure against volume": "V",
    "energies about the E0 fit": "E",
}
BOHR = 1 / units.Bohr
# what is wrong: the factor on each field
WRONG: dict[str, dict[str, float]] = {
    "as it is": {},
    "forces negated": {"forces": -1},
    "forces in Hartree/Bohr": {"forces": units.Bohr / units.Hartree},
    "stress sign flipped": {"stress": -1},
    "stress in GPa": {"stress": 1 / units.GPa},
    "stress in -kbar": {"stress": -10 / units.GPa},
    "energy in Hartree": {"energy": 1 / units.Hartree},
    "energy in kcal/mol": {"energy": units.mol / units.kcal},
    "positions in Bohr": {"positions": BOHR, "cell": BOHR},
}


def spoiled(structure: Structure, factors: dict[str, float]) -> Structure:
    """The structure with some fields multiplied, those it has."""
    fields: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for name, factor in factors.items():
        value = getattr(structure, name)
        changed = labels if name in LABELS else fields
        changed[name] = None if value is None else np.multiply(value, factor)
    return dataclasses.replace(structure, **fields).with_labels(**labels)


def row(path: Path) -> list[str]:
    """One line of the table: name, structures sampled, and what refused each wrong version."""
    config = load_settings(
        ConvertConfig, Path("ref_labels"), ["split_by=group", "masks.stress=stress_suspect"]
    )
    structures = sample_structures(str(path), config)
    labelled = {
        name
        for name in ("energy", "forces", "stress")
        if any(getattr(s, name) is not None for s in structures)
    }
    cells = [path.name.split(".")[0], str(len(structures))]
    for factors in WRONG.values():
        if not labelled | {"positions", "cell"} >= set(factors):
            cells.append("")
            continue
        findings = examine([spoiled(s, factors) for s in structures], config)
        cells.append("".join(SHORT[f.test] for f in findings if f.outcome == "fail") or "-")
    return cells


def main() -> None:
    """Print the table line by line, and the shares at its end."""
    print("| file | structures | " + " | ".join(WRONG) + " |")
    print("|---" * (len(WRONG) + 2) + "|")
    rows = []
    for name in sys.argv[1:]:
        rows.append(row(Path(name)))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    shares = [[cells[k] for cells in rows if cells[k]] for k in range(2, len(WRONG) + 2)]
    refused = [f"{sum(cell != '-' for cell in column)} of {len(column)}" for column in shares]
    print(f"| refused, of {len(rows)} files | | " + " | ".join(refused) + " |")


if __name__ == "__main__":
    main()
