"""Fine-tune a model to your own labelled structures, and use it.

Run it with: python refit_own_data.py MODEL DATA OUT
"""

import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import check_model_place, save_finetuned


reference, data, out = sys.argv[1:4]
check_model_place(Path(out))  # fail now and not after the training
model = model_zoo.load(reference)

config = FineTuneConfig(strategy="refit")
result = finetune(model, data, config, work=Path(out + "-data"))
for row in result.table:
    energy = row.energy_mae_per_atom  # None if the data have no energies
    force = row.force_mae
    print(f"{row.name}: energy MAE {energy} eV/atom, force MAE {force} eV/A")

folder = save_finetuned(result, model, Path(out))
print("saved in", folder)

# The saved folder loads like any other model.
tuned = model_zoo.load(folder)
atoms = result.structures[0].to_atoms()
atoms.calc = tuned.calculator(level_of_theory=result.level_of_theory)
energy = atoms.get_potential_energy()
print(f"energy of {atoms.symbols}: {energy:.4f} eV")
