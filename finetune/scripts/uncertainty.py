"""Compare the spread of forces over bootstrap heads with the true error.

Run it with: python uncertainty.py MODEL DATA OUT
"""

import sys
from pathlib import Path

import numpy as np

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.heads import member_levels
from evenfield.finetune.run import finetune
from evenfield.finetune.save import check_model_place, save_finetuned


NUM_HEADS = 8

reference, data, out = sys.argv[1:4]
check_model_place(Path(out))  # fail now and not after the training
model = model_zoo.load(reference)

config = FineTuneConfig(strategy="refit", ensemble=NUM_HEADS)
result = finetune(model, data, config, work=Path(out + "-data"))
if not result.refit.error_after < 0.999 * result.refit.error_before:
    print("The refit did not lower the errors on structures that were left out.")
    print("The heads are therefore almost equal: their spread is not an uncertainty.")

# The saved model has one more head for each bootstrap refit.
tuned = model_zoo.load(save_finetuned(result, model, Path(out)))
levels = member_levels(result.level_of_theory, NUM_HEADS)
calculators = [tuned.calculator(level_of_theory=level) for level in levels]

_, structures = result.target.judged
for structure in structures:
    atoms = structure.to_atoms()
    predicted = [calculator.get_property("forces", atoms) for calculator in calculators]
    forces = np.array(predicted)  # (heads, atoms, 3)

    spread = forces.std(axis=0).max()
    error = np.abs(forces.mean(axis=0) - structure.forces).max()
    print(f"{atoms.symbols}: largest spread {spread:.3f} eV/A, largest error {error:.3f} eV/A")
