"""Teach a model an element that it has never seen; the network does not change for others.

Run it with: python new_element.py MODEL DATA OUT [STEPS]
"""

import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import check_model_place, save_finetuned


reference, data, out, *rest = sys.argv[1:]
steps = int(rest[0]) if rest else 300
check_model_place(Path(out))  # fail now and not after the training
model = model_zoo.load(reference)

# The closed-form refit gives the new element its own readout weights. The training then changes
# only the vector that represents the element in the network.
config = FineTuneConfig(
    strategy="new-element",
    start="refit",
    gradient=GradientConfig(max_steps=steps),
)
result = finetune(model, data, config, work=Path(out + "-data"))

known = set()
for symbols in model.record.elements.values():
    known.update(symbols)
present = set()
for structure in result.structures:
    present.update(structure.to_atoms().symbols)
print("learned:", sorted(present - known))

for name, stage in result.stages.items():
    errors = stage.errors
    print(f"{name}: force MAE {errors.force_mae:.4f} eV/A on the {errors.split} split")

folder = save_finetuned(result, model, Path(out))
print("saved in", folder)
