"""Fine-tune to labels that are energies alone, all parameters: python energy_only.py MODEL DATA OUT [STEPS]"""

import sys
from dataclasses import replace
from pathlib import Path

from ... import model_zoo
from ..gradient.train import GradientConfig
from ..run import FineTuneConfig, finetune
from ..save import save_finetuned
from ..target import open_target


reference, data, out, *steps = sys.argv[1:]
model, target = model_zoo.load(reference), open_target(data, work=Path(out + "-data"))
train, valid = (
    [s.with_labels(forces=None, stress=None) for s in part] for part in (target.train, target.valid)
)
target = replace(target, train=train, valid=valid)
gradient = GradientConfig(max_steps=int(steps[0]) if steps else 300, learning_rate=1e-3)
result = finetune(model, target, FineTuneConfig(strategy="full", gradient=gradient))
for name, errors in result.evaluations.items():
    energy_mae = 1000 * (errors.energy_mae_per_atom or 0.0)
    print(f"{name}: energy MAE {energy_mae:.1f} meV/atom on the {errors.split} split")
print("saved in", save_finetuned(result, model, Path(out)))
