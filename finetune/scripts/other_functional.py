"""Move a model to another functional by total energies alone: python other_functional.py MODEL DATA OUT LEVEL

The new level of theory gets a head of its own; the old one stays as it was.
"""

import sys
from pathlib import Path

from ... import model_zoo
from ...data_pipelines.sources.config import SourceConfig
from ..run import FineTuneConfig, finetune
from ..save import save_finetuned


reference, data, out, level = sys.argv[1:5]
model = model_zoo.load(reference)
config = FineTuneConfig(strategy="refit", source=SourceConfig(level_of_theory=level))
result = finetune(model, data, config, work=Path(out + "-data"))
print(
    "E0 shifts (eV):",
    {symbol: round(shift, 3) for symbol, shift in result.reference.shifts.items()},
)
print("undetermined:", result.reference.undetermined or "none")
print("energy MAE before and after (eV/atom):", [row.energy_mae_per_atom for row in result.table])
print(
    "saved in",
    save_finetuned(result, model, Path(out)),
    "with",
    result.potential.config.levels_of_theory,
)
