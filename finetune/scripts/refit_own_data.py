"""Fine-tune a model to your own labelled structures, and use it.

Run it with: python refit_own_data.py MODEL DATA OUT
"""

import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned


reference, data, out = sys.argv[1:4]
model = model_zoo.load(reference)
result = finetune(model, data, FineTuneConfig(strategy="refit"), work=Path(out + "-data"))
for row in result.table:
    energy, force = row.energy_mae_per_atom, row.force_mae
    print(f"{row.name}: energy MAE {energy} eV/atom, force MAE {force} eV/A")
folder = save_finetuned(result, model, Path(out))

atoms = result.structures[0].to_atoms()
atoms.calc = model_zoo.load(folder).calculator(level_of_theory=result.level_of_theory)
print(f"saved in {folder}; energy of {atoms.symbols}: {atoms.get_potential_energy():.4f} eV")
