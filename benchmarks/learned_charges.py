"""What charges that are learned through their energy give on real data.

    python benchmarks/learned_charges.py --data FOLDER --work WORK
        [--sets mpf_alkali_tp ligeps perovskite_leadfree] [--steps 1500] [--channels 16]
        [--layers 1 2] [--seeds 0]

Each set of DFT labels is converted with groups kept together, and the same network is trained twice
at the same number of steps: with `model.charges=true` and without. Errors are those on the test
split. FOLDER holds the sets as NAME.extxyz.gz.

Minutes a training on one core. Runs stand in WORK and are not repeated. Writes
results/learned_charges.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from evenfield.core.settings import load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


RESULT = Path(__file__).resolve().parent / "results" / "learned_charges.json"
RECIPE = "ref_labels"
ERRORS = ("force_mae", "energy_mae_per_atom", "stress_mae")


def data_set(source: Path, folder: Path) -> Path:
    """The converted set, made once."""
    name = source.name.removesuffix(".extxyz.gz")
    target = folder / name
    if not target.exists():
        shares = ["test_share=0.15", "valid_share=0.05"]
        convert(source, target, load_settings(ConvertConfig, RECIPE, shares), workers=1)
    return target


def errors_of(
    data: Path, out: Path, options: argparse.Namespace, layers: int, seed: int, *, charges: bool
) -> dict[str, Any]:
    """Train once, and read what the run says of its test split."""
    began = time.perf_counter()
    if not (out / "model").exists():
        recipe = {
            "data": str(data),
            "out": str(out),
            "seed": seed,
            "max_steps": options.steps,
            "evaluate_every": options.steps,
            "model": {
                "channels": options.channels,
                "num_layers": layers,
                "l_max": 2,
                "charges": charges,
            },
            "stream": {"edge_budget": options.edges},
        }
        pretrain(PretrainConfig.model_validate(recipe), quiet=True)
    found = json.loads((out / "model" / "evaluation.json").read_text())
    row: dict[str, Any] = {key: found.get(key) for key in ERRORS}
    row["seconds"] = round(time.perf_counter() - began, 1)
    print(out.name, json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--sets", nargs="+", default=["mpf_alkali_tp", "ligeps", "perovskite_leadfree"]
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--edges", type=int, default=8000)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    rows = []
    for name in options.sets:
        data = data_set(options.data / f"{name}.extxyz.gz", options.work / "data")
        for layers in options.layers:
            for seed in options.seeds:
                row: dict[str, Any] = {"set": name, "layers": layers, "seed": seed}
                for arm in ("without", "learned"):
                    out = options.work / f"{name}-{layers}-{seed}-{arm}"
                    row[arm] = errors_of(data, out, options, layers, seed, charges=arm == "learned")
                for key in ("force_mae", "energy_mae_per_atom"):
                    row[f"{key}_without_over_learned"] = row["without"][key] / row["learned"][key]
                rows.append(row)
                content = {
                    "steps": options.steps,
                    "channels": options.channels,
                    "edge_budget": options.edges,
                    "rows": rows,
                }
                options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
