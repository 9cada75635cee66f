"""Test errors over the cost of inference, from results of equal_seconds.py: one picture, one table.

    python benchmarks/error_against_cost.py PICTURE.png RESULT.json [RESULT.json ...]
        [--atoms 512] [--budget SECONDS]

Every model and size is one marker, and lines join the sizes of a model. The cost is the processor
microseconds per atom for energy and forces on one thread, neighbour list included. The errors are
those on the test structures, after equal processor seconds of training. Left and low is better.
Several seeds are averaged by their logarithms. Also prints the figures as a table in Markdown,
sorted by the force error. Without --budget, the budget is the longest that all models were trained
for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from equal_seconds import FIGURES, MODELS, model_looks
from matplotlib import rc_context
from matplotlib.figure import Figure

from evenfield.core.figures.style import STYLE, plain_log_ticks


Key = tuple[str, int | str]  # model and size


def read_rows(paths: list[Path]) -> list[dict[str, Any]]:
    """The rows of all results; exits with one line if these are of several data sets."""
    rows = []
    file_of_data = {}
    for path in paths:
        content = json.loads(path.read_text())
        file_of_data[content["settings"]["data"]] = path
        for row in content["rows"]:
            if row["model"] == "evenfield":
                row["channels"] = own_size(row["channels"], content["settings"]["ours"])
            rows.append(row)
    if len(file_of_data) > 1:
        files = ", ".join(f"{path} of {name}" for name, path in file_of_data.items())
        sys.exit(f"these results are of several data sets: {files}")
    return rows


def own_size(channels: int | str, words: list[str]) -> int | str:
    """The size of a run of ours: the channels, and all settings of the model that were changed."""
    changed = [word.removeprefix("model.") for word in words if word.startswith("model.")]
    return " ".join([str(channels), *changed]) if changed else channels


def common_budget(rows: list[dict[str, Any]]) -> float:
    """The longest budget that every model and size has; exits with one line if there is none."""
    budgets: dict[Key, set[float]] = defaultdict(set)
    for row in rows:
        budgets[row["model"], row["channels"]].add(row["budget"])
    common = set.intersection(*budgets.values())
    if not common:
        sys.exit(f"no budget is common to all of {[*budgets]}: name one with --budget")
    return max(common)


def points(rows: list[dict[str, Any]], budget: float, atoms: int) -> dict[Key, dict[str, float]]:
    """Cost (microseconds per atom) and errors of every model and size, sorted by model and cost.

    atoms: in the structure that inference was timed with. Exits with one line if no row fits.
    """
    samples: dict[Key, list[list[float]]] = defaultdict(list)
    for row in rows:
        cost = row.get("microseconds_per_atom", {}).get(str(atoms))
        if row["budget"] == budget and cost is not None:
            values = [cost, *(row[name] for name in FIGURES)]
            samples[row["model"], row["channels"]].append(values)
    if not samples:
        sys.exit(f"no row has a budget of {budget:g} s and the time of inference at {atoms} atoms")
    names = ("microseconds_per_atom", *FIGURES)
    found: dict[Key, dict[str, float]] = {}
    for key, values in samples.items():
        geometric_means = np.exp(np.log(values).mean(axis=0)).tolist()
        found[key] = dict(zip(names, geometric_means, strict=True))
        found[key]["seeds"] = len(values)

    def by_model_and_cost(key: Key) -> tuple[int, float]:
        return MODELS.index(key[0]), found[key]["microseconds_per_atom"]

    return {key: found[key] for key in sorted(found, key=by_model_and_cost)}


def is_beaten(key: Key, found: dict[Key, dict[str, float]]) -> bool:
    """Whether another model or size is no slower, and has smaller errors of both kinds."""
    own = found[key]
    for other_key, other in found.items():
        cheaper = other["microseconds_per_atom"] <= own["microseconds_per_atom"]
        if other_key != key and cheaper and all(other[name] < own[name] for name in FIGURES):
            return True
    return False


def table(found: dict[Key, dict[str, float]]) -> str:
    """A table in Markdown, sorted by force error; models in bold are not beaten by another row."""
    heads = ["model", "size", "us/atom", *(label for label, _ in FIGURES.values()), "seeds"]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for key in sorted(found, key=lambda key: found[key]["force_mae"]):
        row = found[key]
        model, size = key
        cells = [model if is_beaten(key, found) else f"**{model}**"]
        cells.append(str(size))
        cells.append(f"{row['microseconds_per_atom']:.3g}")
        for name, (_, factor) in FIGURES.items():
            cells.append(f"{factor * row[name]:.3g}")
        cells.append(str(row["seeds"]))
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


@rc_context(STYLE)
def draw(found: dict[Key, dict[str, float]], title: str, path: Path) -> None:
    """Two panels, errors of forces and of energies, both axes logarithmic."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels = figure.subplots(1, 2)
    looks = dict(zip(MODELS, model_looks(), strict=False))
    for axes, (name, (label, factor)) in zip(panels, FIGURES.items(), strict=True):
        for model in dict.fromkeys(model for model, _ in found):
            colour, marker = looks[model]
            own = {size: row for (other, size), row in found.items() if other == model}
            costs = [row["microseconds_per_atom"] for row in own.values()]
            errors = [factor * row[name] for row in own.values()]
            axes.plot(costs, errors, f"{marker}-", color=colour, label=model)
            for size, cost, error in zip(own, costs, errors, strict=True):
                axes.annotate(
                    str(size),
                    (cost, error),
                    xytext=(4, 4),
                    textcoords="offset points",
                    color=colour,
                    fontsize=9,
                )
        axes.set(xscale="log", yscale="log", xlabel="inference (microseconds per atom)")
        axes.set_ylabel(label)
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line, or of `words`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--atoms", type=int, default=512, help="of the timed structure")
    parser.add_argument("--budget", type=float, help="processor seconds of training")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Print the table and draw the picture."""
    options = parse_arguments(words)
    rows = read_rows(options.results)
    budget = options.budget or common_budget(rows)
    found = points(rows, budget, options.atoms)
    print(table(found))
    data = json.loads(options.results[0].read_text())["settings"]["data"]
    title = f"{data}: {budget:g} processor seconds of training, inference at {options.atoms} atoms"
    draw(found, title, options.picture)


if __name__ == "__main__":
    main()
