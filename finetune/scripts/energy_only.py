"""Fine-tune all parameters to energies alone.

Run it with: python energy_only.py MODEL DATA OUT [STEPS]
"""

import sys
from dataclasses import replace
from pathlib import Path

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.target import open_target


reference, data, out, *steps = sys.argv[1:]
model = model_zoo.load(reference)

# Drop forces and stress, as if the data had none.
target = open_target(data, work=Path(out + "-data"))
train = [structure.with_labels(forces=None, stress=None) for structure in target.train]
valid = [structure.with_labels(forces=None, stress=None) for structure in target.valid]
target = replace(target, train=train, valid=valid)

gradient = GradientConfig(max_steps=int(steps[0]) if steps else 300, learning_rate=1e-3)
result = finetune(model, target, FineTuneConfig(strategy="full", gradient=gradient))

for name, stage in result.stages.items():
    error = stage.errors.energy_mae_per_atom or 0.0
    print(f"{name}: energy MAE {1000 * error:.1f} meV/atom on the {stage.errors.split} split")
print("saved in", save_finetuned(result, model, Path(out)))
