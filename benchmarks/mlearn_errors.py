"""Test errors of a model on the mlearn sets (Zuo et al. 2020), beside the published ones, as JSON and a table.

    python benchmarks/mlearn_errors.py MODEL DATA OUT.json

MODEL was pretrained on a set that holds their training frames; DATA holds mlearn_{Ni,Cu,Li,Mo,Si}.extxyz.gz. The
published models were each fitted to one element alone; this one to 85 elements at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evenfield import model_zoo
from evenfield.data_pipelines.settings import load_settings
from evenfield.data_pipelines.sources import SourceConfig, read_structures
from evenfield.pretrain.evaluation import predict, summarise


# ACEsuit/ACEworkflows, Zuo2020Benchmark: meV/atom and eV/A per component
PUBLISHED = {
    "Ni": {"GAP": (0.42, 0.02), "MTP": (0.48, 0.01)},
    "Cu": {"GAP": (0.46, 0.01), "MTP": (0.41, 0.01)},
    "Li": {"GAP": (0.49, 0.01), "MTP": (0.49, 0.01)},
    "Mo": {"GAP": (2.24, 0.09), "MTP": (2.83, 0.09)},
    "Si": {"GAP": (2.91, 0.07), "MTP": (2.21, 0.06)},
}
RECIPE = Path(__file__).parents[1] / "data_pipelines" / "recipes" / "ref_labels.yaml"


def main(reference: str, data: Path, out: Path) -> None:
    """Evaluate each element's published test frames."""
    model = model_zoo.load(reference)
    rows = {}
    for element, published in PUBLISHED.items():
        source = load_settings(SourceConfig, RECIPE)
        frames = read_structures(data / f"mlearn_{element}.extxyz.gz", source)
        errors = summarise(predict(model.potential, (s for s in frames if s.split == "test")), "test")
        rows[element] = {
            "num_structures": errors["num_structures"],
            "energy_mae_mev_per_atom": 1000 * errors["energy_mae_per_atom"],
            "force_mae_ev_per_a": errors["force_mae"],
            "published": published,
        }
        print(element, json.dumps(rows[element]))
    out.write_text(json.dumps({"model": Path(reference).name, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
