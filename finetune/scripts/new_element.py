"""Teach a model an element that it never saw, nothing else moves: python new_element.py MODEL DATA OUT"""

import sys
from pathlib import Path

from ... import model_zoo
from ..gradient.train import GradientConfig
from ..run import FineTuneConfig, finetune
from ..save import save_finetuned


reference, data, out, *steps = sys.argv[1:]
model = model_zoo.load(reference)
gradient = GradientConfig(max_steps=int(steps[0]) if steps else 300)
config = FineTuneConfig(strategy="new-element", start="refit", gradient=gradient)
result = finetune(model, data, config, work=Path(out + "-data"))
known = {symbol for symbols in model.record.elements.values() for symbol in symbols}
print("learned:", sorted({str(a) for s in result.structures for a in s.to_atoms().symbols} - known))
for name, errors in result.evaluations.items():
    print(f"{name}: force MAE {errors.force_mae:.4f} eV/A on the {errors.split} split")
print("saved in", save_finetuned(result, model, Path(out)))
