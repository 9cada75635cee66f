"""The crossover laboratory: what a method does for rare elements, with each its own control.

    python benchmarks/evenness_lab.py OUT [--methods uniform sampling ...] [--seeds 0 1]
        [--steps 600] [--data FOLDER] [--name evenness_lab]

Every chosen element is rare in one arm (5 training structures) and common in the other (160); the
test structures are the same. The ratio of its two errors therefore contains neither the size of its
forces nor its difficulty. Without --data, the arms are made of clusters of 24 cations at GFN2-xTB;
with it, elements of a converted data set are thinned out.

A method is a list of settings of `evenfield pretrain`, and perhaps cheap data by `evenfield data
enrich`, weights that follow the errors of a reference model, a refit of the readout, or labels that
are differences to a cheap level. Everything that OUT has already is kept. Writes results/NAME.json
and .png, and prints the table. Figures are geometric means over elements, intervals of 90 % by a
bootstrap over elements.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from evenness_arms import (
    CATIONS,
    COMMON,
    RARE,
    differences,
    elements_to_thin,
    labelled_clusters,
    structures_of,
    thinned,
    write_arm,
)
from matplotlib import rc_context
from matplotlib.figure import Figure

from evenfield import model_zoo
from evenfield.core.figures.style import STYLE
from evenfield.data_pipelines.census.census import NUM_ELEMENTS
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.finetune.closed_form.design_rows import LabelWeights
from evenfield.finetune.closed_form.refit import refit_readout
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.summary import INTERVAL, ErrorSummary, summarise


RESULTS = Path(__file__).parent / "results"
ARMS = (0, 1)
NUM_DRAWS = 4000
UNIFORM = "uniform"


@dataclass(frozen=True)
class Method:
    """How an arm is trained."""

    words: tuple[str, ...] = ()
    """Settings of `evenfield pretrain`."""
    cheap: str = ""
    """What `evenfield data enrich` labels, `elements=...`; empty for no cheap data."""
    cheap_share: float = 0.0
    """Of the structures that are seen."""
    more_steps: bool = False
    """Train longer, so that the main structures are seen as often as without cheap data."""
    excess_over: str = ""
    """The method whose errors are the reference of adaptive weights; empty for none."""
    balanced_refit_of: str = ""
    """The method whose readout is refitted in closed form, with forces of all elements counted
    alike; empty for none."""
    difference: bool = False
    """Learn the difference to the oracle, which every prediction then needs too."""


SAMPLING = ("stream.weights.beta=0.5",)
STRONG_SAMPLING = ("stream.weights.beta=1",)
# The cheap level shares its readout with the main one, up to the energies of free atoms.
SHARING = ("level_sharing.levels=[GFN2-xTB,GFN1-xTB]",)
# The tables of an element follow those of similar elements.
ELEMENTS = ("element_sharing.strength=0.3",)
METHODS = {
    UNIFORM: Method(),
    "sampling": Method(SAMPLING),
    "excess": Method(excess_over=UNIFORM),
    "elements": Method(ELEMENTS),
    "balanced_refit": Method(balanced_refit_of=UNIFORM),
    "difference": Method(difference=True),
    "cheap_rare": Method((), "rare", 0.25),
    "cheap_all": Method((), "all", 0.5),
    "cheap_rare_sampling": Method(SAMPLING, "rare", 0.25),
    "cheap_all_sampling": Method(SAMPLING, "all", 0.5),
    "cheap_rare_sharing": Method(SHARING, "rare", 0.25),
    "cheap_rare_sampling_sharing": Method(SAMPLING + SHARING, "rare", 0.25),
    "cheap_rare_sampling_more_steps": Method(SAMPLING, "rare", 0.25, more_steps=True),
    "cheap_rare_sampling_sharing_more_steps": Method(
        SAMPLING + SHARING, "rare", 0.25, more_steps=True
    ),
    "cheap_all_sampling_sharing_more_steps": Method(
        SAMPLING + SHARING, "all", 0.5, more_steps=True
    ),
    "cheap_all_strong_sampling_sharing_more_steps": Method(
        STRONG_SAMPLING + SHARING, "all", 0.5, more_steps=True
    ),
    "cheap_rare_strong_sampling_sharing_more_steps": Method(
        STRONG_SAMPLING + SHARING, "rare", 0.25, more_steps=True
    ),
}


@dataclass(frozen=True)
class Lab:
    """Where runs are, and what all of them share."""

    out: Path
    elements: tuple[str, ...]
    oracle: str
    steps: int
    channels: int
    cheap_structures: int

    def rare_in(self, arm: int) -> list[str]:
        """Elements that are rare in an arm: every second one, so that relatives are divided."""
        return list(self.elements[arm::2])

    def data(self, arm: int) -> Path:
        """The converted data set of an arm."""
        return self.out / f"arm{arm}"


def train(lab: Lab, name: str, arm: int, seed: int) -> ErrorSummary:
    """Errors of a finished run, which is made where it is missing."""
    method = METHODS[name]
    folder = run_folder(lab, name, arm, seed)
    evaluation = folder / "evaluation.json"
    if not evaluation.is_file():
        started = time.perf_counter()
        if method.balanced_refit_of:
            train(lab, method.balanced_refit_of, arm, seed)
            base = run_folder(lab, method.balanced_refit_of, arm, seed)
            summary = balanced_refit(base / "model", lab.data(arm))
            folder.mkdir(exist_ok=True)
            evaluation.write_text(summary.to_json())
        else:
            run("pretrain", *settings_of(lab, name, arm, seed), "--resume", "auto")
        print(f"{folder.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return ErrorSummary.read(evaluation)


def settings_of(lab: Lab, name: str, arm: int, seed: int) -> list[str]:
    """The settings of a run of `evenfield pretrain`. The data that it needs are made."""
    method = METHODS[name]
    data = [difference_data(lab, arm) if method.difference else lab.data(arm)]
    words = []
    steps = lab.steps
    if method.more_steps:
        steps = round(lab.steps / (1 - method.cheap_share))
    if method.cheap:
        cheap = cheap_data(lab, arm, method.cheap)
        data.append(cheap)
        shares = {data[0].name: 1 - method.cheap_share, cheap.name: method.cheap_share}
        words += [f"mixing.shares.{key}={share}" for key, share in shares.items()]
    words += [
        f"data=[{','.join(map(str, data))}]",
        f"out={run_folder(lab, name, arm, seed)}",
        f"max_steps={steps}",
        f"model.channels={lab.channels}",
        f"seed={seed}",
        f"stream.seed={seed}",
        f"evaluate_every={steps}",
        f"checkpoints.every={steps}",
        *method.words,
    ]
    if method.excess_over:
        train(lab, method.excess_over, arm, seed)
        words += excess_over(run_folder(lab, method.excess_over, arm, seed), lab.data(arm))
    return words


def run_folder(lab: Lab, name: str, arm: int, seed: int) -> Path:
    """The folder of one run."""
    return lab.out / f"{name}-{lab.channels}-{lab.steps}-arm{arm}-seed{seed}"


def excess_over(reference: Path, data: Path) -> list[str]:
    """Settings of weights that follow the excess over a finished run, on validation structures."""
    errors = reference / "errors_valid"
    if not (errors / "evaluation.json").is_file():
        run("evaluate", str(reference / "model"), str(data), str(errors), "--split", "valid")
    return [
        "evaluate_every=50",
        "adaptive.rate=0.5",
        f"adaptive.reference={errors / 'evaluation.json'}",
    ]


def balanced_refit(model: Path, data: Path) -> ErrorSummary:
    """Test errors after a refit of the readout to the training structures.

    An element with n training atoms has the weight 1/n in the forces, so that all count alike.
    """
    potential, record = model_zoo.load_model(model)
    train = list(iter_structures(data, "train"))
    num_atoms = np.zeros(NUM_ELEMENTS)
    for structure in train:
        np.add.at(num_atoms, structure.atomic_numbers, 1)
    weights = np.zeros(NUM_ELEMENTS)
    present = num_atoms > 0
    # the mean over all atoms is 1
    weights[present] = num_atoms.sum() / present.sum() / num_atoms[present]

    (level,) = record.elements
    known = {atomic_numbers[symbol] for symbol in record.elements[level]}
    balanced = LabelWeights(np.ones(len(train)), weights)
    refit_readout(potential, 0, train, known=known, known_e0=known, weights=balanced)
    return summarise(predict(potential, iter_structures(data, "test")), "test")


def difference_data(lab: Lab, arm: int) -> Path:
    """The structures of an arm with the labels of the oracle subtracted."""
    folder = lab.out / f"arm{arm}-difference"
    if not (folder / "dataset_info.json").is_file():
        write_arm(differences(structures_of(lab.data(arm)), lab.oracle), folder)
    return folder


def cheap_data(lab: Lab, arm: int, elements: str) -> Path:
    """Cheap labels of an arm's elements, rare ones or all that are thinned in one of the arms."""
    folder = lab.out / f"arm{arm}-cheap-{elements}"
    if not (folder / "dataset_info.json").is_file():
        chosen = lab.rare_in(arm) if elements == "rare" else lab.elements
        words = [
            f"oracle={lab.oracle}",
            f"elements=[{','.join(chosen)}]",
            f"structures_per_element={lab.cheap_structures}",
        ]
        run("data", "enrich", str(lab.data(arm)), str(folder), *words, "--workers", "1")
    return folder


def run(*words: str) -> None:
    """One command of evenfield, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evenfield.cli", *words]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def errors_of(lab: Lab, name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Element -> force MAE of its atoms when rare and when common, eV/A."""
    arms = [train(lab, name, arm, seed).force_mae_of_elements() for arm in ARMS]
    errors = {}
    for index, symbol in enumerate(lab.elements):
        rare_arm = index % 2
        if symbol in arms[0] and symbol in arms[1]:
            errors[symbol] = (arms[rare_arm][symbol], arms[1 - rare_arm][symbol])
    return errors


# --- figures


def figures(by_seed: list[np.ndarray], uniform: list[np.ndarray]) -> dict[str, Any]:
    """The row of a method.

    by_seed, uniform: for the same seeds, log errors (E, 2) when rare and when common.
    """
    own = np.mean(by_seed, axis=0)
    reference = np.mean(uniform, axis=0)
    stacked = np.stack([own, reference], axis=1)  # (E, 2 methods, 2)
    row: dict[str, Any] = {"seeds": len(by_seed)}
    for key, statistic in STATISTICS.items():
        low, high = bootstrap(stacked, statistic)
        row[key] = float(statistic(stacked.mean(axis=0)))
        row[f"{key}_interval"] = [low, high]
    return row


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # of mean log errors (..., 2 methods, 2 rare and common)
    "ratio": lambda mean: np.exp(mean[..., 0, 0] - mean[..., 0, 1]),
    "change_when_rare": lambda mean: np.exp(mean[..., 0, 0] - mean[..., 1, 0]) - 1,
    "change_when_common": lambda mean: np.exp(mean[..., 0, 1] - mean[..., 1, 1]) - 1,
    "gap_closed": lambda mean: (
        1 - (mean[..., 0, 0] - mean[..., 0, 1]) / (mean[..., 1, 0] - mean[..., 1, 1])
    ),
}


def bootstrap(
    samples: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """Percentile interval of a statistic of the mean of samples (E, ...) over elements."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(samples), size=(NUM_DRAWS, len(samples)))
    low, high = np.quantile(statistic(samples[chosen].mean(axis=1)), INTERVAL)
    return float(low), float(high)


def table(errors: dict[str, dict[int, dict[str, tuple[float, float]]]]) -> dict[str, Any]:
    """Rows by method, over the seeds that the method and uniform both have."""
    logs = {
        name: {seed: np.log(np.array(list(own.values()))) for seed, own in by_seed.items()}
        for name, by_seed in errors.items()
    }
    rows = {}
    for name, by_seed in logs.items():
        shared = sorted(by_seed.keys() & logs[UNIFORM].keys())
        rows[name] = figures(
            [by_seed[seed] for seed in shared], [logs[UNIFORM][seed] for seed in shared]
        )
    return rows


def print_table(rows: dict[str, Any]) -> None:
    """Markdown, as docs/reweighting.md has it."""
    print("| method | seeds | ratio | rare | common | gap closed |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        low, high = row["ratio_interval"]
        cells = [name, str(row["seeds"]), f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"]
        for key in ("change_when_rare", "change_when_common", "gap_closed"):
            low, high = row[f"{key}_interval"]
            sign = "" if key == "gap_closed" else "+"
            cells.append(
                f"{row[key] * 100:{sign}.1f} [{low * 100:{sign}.1f}, {high * 100:{sign}.1f}] %"
            )
        print(f"| {' | '.join(cells)} |")


def draw(rows: dict[str, Any], path: Path) -> None:
    """Changes of rare and of common elements, and the share of the gap closed, with intervals."""
    panels = {
        "change of the force error, %": ("change_when_rare", "change_when_common"),
        "share of the gap closed, %": ("gap_closed",),
    }
    labels = {"change_when_rare": "when rare", "change_when_common": "when common"}
    names = [name for name in rows if name != UNIFORM]
    with rc_context(STYLE):
        picture = Figure(figsize=(10, 1.8 + 0.5 * len(names)), layout="constrained")
        axes = picture.subplots(1, len(panels), sharey=True)
        for axis, (title, keys) in zip(axes, panels.items(), strict=True):
            for shift, key in zip((0.12, -0.12), keys, strict=False):
                for place, name in enumerate(names):
                    value = 100 * rows[name][key]
                    low, high = 100 * np.array(rows[name][f"{key}_interval"])
                    axis.errorbar(
                        value,
                        place + (shift if len(keys) > 1 else 0),
                        xerr=[[value - low], [high - value]],
                        fmt="o",
                        color="tab:orange" if key != "change_when_common" else "tab:blue",
                        label=labels.get(key) if place == 0 else None,
                    )
            axis.axvline(0, color="0.6", linewidth=1)
            axis.set_xlabel(title)
            labels_of_methods = [textwrap.fill(name.replace("_", " "), 30) for name in names]
            axis.set_yticks(range(len(names)), labels_of_methods)
            axis.set_ylim(-0.5, len(names) - 0.5)
        picture.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        picture.savefig(path, dpi=100)


# --- the laboratory


def open_lab(options: argparse.Namespace) -> Lab:
    """The laboratory with the data of both arms."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    refuse_other_data(options)
    if options.data:
        structures = structures_of(options.data)
        elements = options.elements or elements_to_thin(structures, options.fewest, 0.1)
    else:
        structures = labelled_clusters(out / "clusters.extxyz")
        elements = options.elements or CATIONS
    lab = Lab(
        out,
        tuple(elements),
        options.oracle,
        options.steps,
        options.channels,
        options.cheap_structures,
    )
    for arm in ARMS:
        if not (lab.data(arm) / "dataset_info.json").is_file():
            write_arm(thinned(structures, elements, lab.rare_in(arm), seed=0), lab.data(arm))
    return lab


def refuse_other_data(options: argparse.Namespace) -> None:
    """Stop where OUT was begun with other data: what it holds is kept by name alone.

    Steps, channels and seeds are in the names.
    """
    keys = ("data", "elements", "fewest", "oracle", "cheap_structures")
    text = json.dumps({key: str(getattr(options, key)) for key in keys}, indent=1) + "\n"
    path = options.out / "lab.json"
    if path.is_file() and path.read_text() != text:
        sys.exit(f"{path}: this laboratory was begun with other options; choose another OUT")
    path.write_text(text)


def content_of(
    lab: Lab, options: argparse.Namespace, errors: dict[str, Any], rows: dict[str, Any]
) -> dict[str, Any]:
    """What the JSON file holds."""
    keys = ("steps", "channels", "cheap_structures")
    shown = [f"--{key.replace('_', '-')} {getattr(options, key)}" for key in keys]
    return {
        "command": f"python benchmarks/evenness_lab.py OUT {' '.join(shown)}"
        + (" --data DATA" if options.data else ""),
        "elements": lab.elements,
        "training_structures": {"rare": RARE, "common": None if options.data else COMMON},
        "structures_of_arms": [read_info(lab.data(arm))["num_structures"] for arm in ARMS],
        "methods": {
            name: {
                "words": METHODS[name].words,
                "cheap": METHODS[name].cheap,
                "cheap_share": METHODS[name].cheap_share,
                "more_steps": METHODS[name].more_steps,
            }
            for name in rows
        },
        "table": rows,
        "force_mae_rare_and_common": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--data", type=Path, help="converted data set to thin out")
    parser.add_argument(
        "--elements", nargs="+", help="elements that are thinned in one of the arms"
    )
    parser.add_argument(
        "--fewest", type=int, default=60, help="structures of an element to be thinned, with --data"
    )
    parser.add_argument("--oracle", default="GFN1-xTB", help="of the cheap labels")
    parser.add_argument("--cheap-structures", type=int, default=100, help="for each element")
    parser.add_argument("--name", default="evenness_lab", help="of the files in results/")
    options = parser.parse_args()

    lab = open_lab(options)
    errors: dict[str, dict[int, dict[str, tuple[float, float]]]] = {}
    # all methods of a seed before the next seed, with a table after each: it may be stopped
    methods: Sequence[str] = [UNIFORM, *(name for name in options.methods if name != UNIFORM)]
    for seed in options.seeds:
        for name in methods:
            errors.setdefault(name, {})[seed] = errors_of(lab, name, seed)
            rows = table(errors)
            text = json.dumps(content_of(lab, options, errors, rows), indent=1)
            (RESULTS / f"{options.name}.json").write_text(text + "\n")
    print_table(rows)
    draw(rows, RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
