"""Energies and forces with their spread over bootstrap heads: python uncertainty.py MODEL DATA OUT"""

import sys
from pathlib import Path

import numpy as np

from ... import model_zoo
from ..heads import member_levels
from ..run import FineTuneConfig, finetune
from ..save import save_finetuned


reference, data, out = sys.argv[1:4]
model = model_zoo.load(reference)
result = finetune(
    model, data, FineTuneConfig(strategy="refit", ensemble=8), work=Path(out + "-data")
)
if not result.refit.error_after < 0.999 * result.refit.error_before:
    print(
        "no refit is better than step 0 on what is left out: the heads are alike, and their spread says nothing"
    )
tuned = model_zoo.load(save_finetuned(result, model, Path(out)))
calculators = [
    tuned.calculator(level_of_theory=level) for level in member_levels(result.level_of_theory, 8)
]
for structure in result.target.judged[1]:
    atoms = structure.to_atoms()
    forces = np.array([calculator.get_property("forces", atoms) for calculator in calculators])
    error = np.abs(forces.mean(0) - structure.forces).max()
    print(
        f"{atoms.symbols}: largest spread {forces.std(0).max():.3f} eV/A, largest error {error:.3f} eV/A"
    )
