"""The few-shot study: curves of several targets, compared with MACE's fine-tuning.

    python benchmarks/few_shot_study.py OUT TARGET=CURVE.json[,CURVE.json ...] [TARGET=...]
        [--mace mace.json]

The curves are those of `evenfield finetune curve` (strategies and from scratch may stand in files
of their own), MACE's rows those of benchmarks/mace_finetune.py on the same draws. Writes OUT.json
and OUT.png and prints tables in Markdown: median over seeds and their number. "reaches scratch" is
how many times fewer structures than from scratch with all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from evenfield.core.figures.style import STYLE
from evenfield.finetune.few_shot.curve import FIGURES
from evenfield.finetune.few_shot.results import FewShotCurve


Row = dict[str, Any]
KEPT = ("num_structures", "strategy", "seed", *FIGURES)
UNITS = {
    "force_mae": ("force MAE (eV/A)", 1.0),
    "energy_mae_per_atom": ("energy MAE (meV/atom)", 1000.0),
}
COLOURS = {
    "step0": "0.6",
    "refit": "tab:orange",
    "wide": "tab:brown",
    "readout": "tab:olive",
    "lora": "tab:green",
    "full": "tab:blue",
    "scratch": "black",
    "MACE frozen": "tab:pink",
    "MACE full": "tab:red",
}


def rows_of(paths: list[str], mace: list[Row], target: str) -> list[Row]:
    """Each (size, strategy, seed) once."""
    found: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        for row in json.loads(Path(path).read_text())["rows"]:
            kept = {key: row[key] for key in KEPT}
            found.setdefault(tuple(row[key] for key in KEPT[:3]), kept)
    for row in mace:
        name, size, how = row["cell"].split()
        if name == target:
            own = {"num_structures": int(size), "strategy": f"MACE {how}"} | {
                key: row[key] for key in KEPT[2:]
            }
            found[own["num_structures"], own["strategy"], own["seed"]] = own
    return list(found.values())


def medians(
    rows: list[Row], strategy: str, figure: str
) -> dict[int, tuple[float, float, float, int]]:
    """Structures -> median, least and largest over seeds, and their number."""
    sizes = sorted({r["num_structures"] for r in rows if r["strategy"] == strategy})
    table = {}
    for size in sizes:
        values = [
            r[figure] for r in rows if (r["num_structures"], r["strategy"]) == (size, strategy)
        ]
        table[size] = (float(np.median(values)), min(values), max(values), len(values))
    return table


@rc_context(STYLE)  # type: ignore[arg-type]
def draw(targets: dict[str, list[Row]], path: Path) -> None:
    """Errors over the number of structures, a column for each target."""
    figure = Figure(figsize=(4.2 * len(targets), 7), layout="constrained")
    grid = figure.subplots(2, len(targets), squeeze=False)
    for column, (name, rows) in enumerate(targets.items()):
        for axes, key in zip(grid[:, column], FIGURES, strict=True):
            label, factor = UNITS[key]
            for strategy, colour in COLOURS.items():
                table = medians(rows, strategy, key)
                if not table:
                    continue
                middle, low, high = (
                    factor * np.array([v[k] for v in table.values()]) for k in range(3)
                )
                style = "o-"
                if strategy == "scratch":
                    style = "x--"
                elif strategy.startswith("MACE"):
                    style = "s"
                axes.errorbar(
                    list(table),
                    middle,
                    [middle - low, high - middle],
                    fmt=style,
                    color=colour,
                    label=strategy,
                    capsize=2,
                    markersize=5,
                    linewidth=1.2,
                )
            axes.set(xscale="log", yscale="log", xlabel="structures", ylabel=label)
            sizes = sorted({r["num_structures"] for r in rows})
            axes.set_xticks(sizes, labels=[str(size) for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
        grid[0, column].set_title(name)
    labels = {
        label: line
        for axes in grid.flat
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=130)


def table(rows: list[Row]) -> str:
    """force / energy error of every strategy at every size."""
    names = [name for name in COLOURS if any(r["strategy"] == name for r in rows)]
    sizes = sorted({r["num_structures"] for r in rows})
    lines = ["| structures | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    both = {name: [medians(rows, name, key) for key in FIGURES] for name in names}
    for size in sizes:
        cells = []
        for name in names:
            force, energy = (part.get(size) for part in both[name])
            known = force is not None and energy is not None
            cells.append(
                f"{force[0]:.3f}, {_short(1000 * energy[0])} ({force[3]})" if known else ""
            )
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("curves", nargs="+", metavar="TARGET=CURVE.json[,...]")
    parser.add_argument("--mace", type=Path)
    options = parser.parse_args()
    mace = json.loads(options.mace.read_text()) if options.mace else {"rows": []}
    targets = {}
    for word in options.curves:
        name, _, paths = word.partition("=")
        targets[name] = rows_of(paths.split(","), mace["rows"], name)
    samples = {}
    for name, rows in targets.items():
        curve = FewShotCurve.model_validate({"target": name, "force_rms": None, "rows": rows})
        samples[name] = {
            strategy: {key: curve.times_fewer(strategy, key) for key in FIGURES}
            for strategy in ("refit", "lora", "full")
        }
    content = {"targets": targets, "samples_needed": samples, "mace": mace.get("pretrained")}
    Path(f"{options.out}.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(targets, Path(f"{options.out}.png"))
    for name, rows in targets.items():
        print(f"\n{name}: force MAE (eV/A), energy MAE (meV/atom), (seeds)\n\n{table(rows)}\n")
        print("reaches scratch with all:", {s: samples[name][s] for s in samples[name]})


if __name__ == "__main__":
    main()
