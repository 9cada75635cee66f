"""Fine-tune all parameters to energies only.

Run it with: python energy_only.py MODEL DATA OUT [STEPS]
"""

import sys
from dataclasses import replace
from pathlib import Path

from evenfield import model_zoo
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import check_model_place, save_finetuned
from evenfield.finetune.target import open_target


def without_forces(structures: list[Structure]) -> list[Structure]:
    return [structure.with_labels(forces=None, stress=None) for structure in structures]


reference, data, out, *rest = sys.argv[1:]
steps = int(rest[0]) if rest else 300
check_model_place(Path(out))  # fail now and not after the training
model = model_zoo.load(reference)

target = open_target(data, work=Path(out + "-data"))
target = replace(
    target,
    train=without_forces(target.train),
    valid=without_forces(target.valid),
)

config = FineTuneConfig(
    strategy="full",
    gradient=GradientConfig(max_steps=steps, learning_rate=1e-3),
)
result = finetune(model, target, config)

for name, stage in result.stages.items():
    errors = stage.errors
    error = 1000 * (errors.energy_mae_per_atom or 0.0)  # meV/atom
    print(f"{name}: energy MAE {error:.1f} meV/atom on the {errors.split} split")

folder = save_finetuned(result, model, Path(out))
print("saved in", folder)
