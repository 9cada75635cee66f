"""Move a model to another functional, with total energies only.

Run it with: python other_functional.py MODEL DATA OUT LEVEL

LEVEL names the new level of theory, which gets a new head. The old heads do not change.
"""

import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import check_model_place, save_finetuned


reference, data, out, level = sys.argv[1:5]
check_model_place(Path(out))  # fail now and not after the training
model = model_zoo.load(reference)

config = FineTuneConfig(
    strategy="refit",
    source=SourceConfig(level_of_theory=level),
)
result = finetune(model, data, config, work=Path(out + "-data"))

# The zeros of energy of two functionals differ by tens of eV. The refit of E0 absorbs this shift.
print("E0 shifts (eV):")
for symbol, shift in result.reference.shifts.items():
    print(f"  {symbol} {shift:.3f}")
print("undetermined:", result.reference.undetermined or "none")

errors = [row.energy_mae_per_atom for row in result.table]
print("energy MAE before and after (eV/atom):", errors)

folder = save_finetuned(result, model, Path(out))
print("saved in", folder, "with", result.potential.config.levels_of_theory)
