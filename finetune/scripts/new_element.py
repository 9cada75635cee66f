"""Teach a model an element that it never saw; nothing else changes.

Run it with: python new_element.py MODEL DATA OUT [STEPS]
"""

import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned


reference, data, out, *steps = sys.argv[1:]
model = model_zoo.load(reference)
config = FineTuneConfig(
    strategy="new-element",
    start="refit",
    gradient=GradientConfig(max_steps=int(steps[0]) if steps else 300),
)
result = finetune(model, data, config, work=Path(out + "-data"))

known = {symbol for symbols in model.record.elements.values() for symbol in symbols}
present = {symbol for structure in result.structures for symbol in structure.to_atoms().symbols}
print("learned:", sorted(present - known))
for name, stage in result.stages.items():
    print(f"{name}: force MAE {stage.errors.force_mae:.4f} eV/A on the {stage.errors.split} split")
print("saved in", save_finetuned(result, model, Path(out)))
