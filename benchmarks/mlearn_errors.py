"""Test errors on the mlearn sets (Zuo et al. 2020), one model for each element.

    python benchmarks/mlearn_errors.py DATA OUT.json [--seconds 300]
        [--elements Ni Cu Li Mo Si] [--ours KEY=VALUE ...]

DATA holds mlearn_{Ni,Cu,Li,Mo,Si}.extxyz.gz with the published split. Every model is the default
one, trained for so many processor seconds (see evenfield_trainer.py). OUT.json is taken up when it
is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from equal_seconds import ask, taken_up
from rich.progress import track

from evenfield.core.settings import load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.pretrain.config import PretrainConfig


# ACEsuit/ACEworkflows, Zuo2020Benchmark: meV/atom and eV/A per component, as rounded there
PUBLISHED = {
    "Ni": {"GAP": (0.42, 0.02), "MTP": (0.48, 0.01)},
    "Cu": {"GAP": (0.46, 0.01), "MTP": (0.41, 0.01)},
    "Li": {"GAP": (0.49, 0.01), "MTP": (0.49, 0.01)},
    "Mo": {"GAP": (2.24, 0.09), "MTP": (2.83, 0.09)},
    "Si": {"GAP": (2.91, 0.07), "MTP": (2.21, 0.06)},
}
RECIPE = Path(__file__).parents[1] / "data_pipelines" / "recipes" / "ref_labels.yaml"


def run(element: str, options: argparse.Namespace) -> dict[str, Any]:
    """Convert the file of one element and train on it; test errors next to the published ones."""
    with tempfile.TemporaryDirectory() as folder:
        convert(
            options.data / f"mlearn_{element}.extxyz.gz",
            f"{folder}/data",
            load_settings(ConvertConfig, RECIPE),
        )
        words = [f"data={folder}/data", "out=none", *options.ours]
        config = load_settings(PretrainConfig, overrides=words).model_dump(mode="json")
        row = ask(
            sys.executable, "evenfield_trainer.py", {"seconds": options.seconds, "config": config}
        )
    energy = 1000 * row["energy_mae_per_atom"]
    force = row["force_mae"]
    best_energy, best_force = (
        min(column) for column in zip(*PUBLISHED[element].values(), strict=True)
    )
    return {
        "element": element,
        "energy_mae_mev_per_atom": energy,
        "force_mae_ev_per_a": force,
        "seconds": row["seconds"],
        "steps": row["steps"],
        "published": PUBLISHED[element],
        "energy_as_good": energy <= best_energy,
        "force_as_good": round(force, 2) <= best_force,  # the published ones are rounded so
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--elements", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument(
        "--ours", nargs="*", default=[], metavar="KEY=VALUE", help="settings of our pretraining"
    )
    options = parser.parse_args()
    settings = {"seconds": options.seconds, "ours": options.ours}
    rows = taken_up(options.out, settings)
    done = {row["element"] for row in rows}
    for element in track([e for e in options.elements if e not in done], "elements"):
        rows.append(run(element, options))
        print(rows[-1], flush=True)
        options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
