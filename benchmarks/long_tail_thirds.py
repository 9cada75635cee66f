"""What cheap labels and sampling do for the rare elements of a data set of DFT labels.

    python benchmarks/long_tail_thirds.py DATA CHEAP OUT [--modes uniform ...] [--seeds 0 1 2]
        [--steps 2500] [--channels 32] [--split test] [--name long_tail_thirds]

DATA is a converted data set with one level of theory, CHEAP a folder that `evenfield data enrich`
made of it. All modes train for the same number of steps and are judged by the same structures:

- force errors relative to the RMS of an element's forces, by thirds of the elements;
- the volumes of four phases of each element (fcc, bcc, sc and diamond), against those of ACWF
  (E. Bosoni et al., Nat. Rev. Phys. 6, 45 (2024)), for the third of all elements with the fewest
  training structures, and for all: how many phases have no minimum, and the errors of those that
  have one in this run and in the uniform one.

Settings are to be chosen with `--split valid`. Runs that OUT has already are not run again. Writes
results/NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from matplotlib import rc_context
from matplotlib.figure import Figure

from evenfield import model_zoo
from evenfield.core.figures.style import COLOURS, STYLE
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.diagnostics.sanity.crystals import minimum
from evenfield.diagnostics.sanity.equation_of_state import EquationOfState
from evenfield.diagnostics.sanity.reference.tables import ElementalPhase, elemental_phases
from evenfield.model_zoo.evaluation.evaluation import predict, with_a_head
from evenfield.model_zoo.evaluation.evenness import GROUPS, evenness, evenness_change, thirds
from evenfield.model_zoo.evaluation.summary import ErrorSummary, summarise


RESULTS = Path(__file__).parent / "results"
UNIFORM = "uniform"
CHEAP_SHARE = 0.25  # of the structures that are seen

SAMPLING = "stream.weights.beta=0.5"
SHARING = "level_sharing.levels=[{level},{cheap_level}]"
# Name -> whether the cheap labels are learned too, and settings of `evenfield pretrain`.
MODES: dict[str, tuple[bool, list[str]]] = {
    UNIFORM: (False, []),
    "sampling": (False, [SAMPLING]),
    "cheap": (True, [SHARING]),
    "cheap_sampling": (True, [SHARING, SAMPLING]),
}


@dataclass(frozen=True)
class Judged:
    """What a model is judged by."""

    summary: ErrorSummary
    volumes: dict[str, list[float]]
    """Element -> |V / V_ACWF - 1| of its phases; infinity where a phase has no minimum."""


def train(options: argparse.Namespace, mode: str, seed: int) -> Path:
    """The model folder of one finished run, which is made if it is missing."""
    folder: Path = options.out / f"{mode}-{seed}"
    if (folder / "model" / "manifest.json").is_file():
        return folder / "model"

    with_cheap, settings = MODES[mode]
    levels = {"level": level_of(options.data), "cheap_level": level_of(options.cheap)}
    words = [setting.format(**levels) for setting in settings]
    data = [options.data]
    if with_cheap:
        data.append(options.cheap)
        words += [
            f"mixing.shares.{options.data.name}={1 - CHEAP_SHARE}",
            f"mixing.shares.{options.cheap.name}={CHEAP_SHARE}",
        ]
    words = [
        f"data=[{','.join(map(str, data))}]",
        f"out={folder}",
        f"max_steps={options.steps}",
        f"model.channels={options.channels}",
        f"seed={seed}",
        f"stream.seed={seed}",
        f"evaluate_every={options.steps}",
        "compute.compiled=true",
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evenfield.cli", "pretrain", *words, "--resume", "auto"]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return folder / "model"


def level_of(data: Path) -> str:
    """The level of theory of a data set that has only one."""
    (level,) = read_census(data)["levels_of_theory"]
    return str(level)


def judge(options: argparse.Namespace, folder: Path) -> Judged:
    """The errors of a model on the chosen split and on the crystals of ACWF, kept beside it."""
    errors = folder.parent / f"errors_{options.split}.json"
    volumes = folder.parent / "volumes.json"
    model = model_zoo.load(folder)
    if not errors.is_file():
        structures = with_a_head(model.potential, iter_structures(options.data, options.split))
        counts = train_counts(options.data)
        summary = summarise(predict(model.potential, structures), options.split, counts)
        errors.write_text(summary.to_json())
    if not volumes.is_file():
        calculator = model.calculator(level_of_theory=level_of(options.data), warn_outside=False)
        found = {symbol: volume_errors(calculator, symbol) for symbol in train_counts(options.data)}
        volumes.write_text(json.dumps(found, indent=1) + "\n")
    content = json.loads(volumes.read_text())
    return Judged(
        ErrorSummary.read(errors), {symbol: own for symbol, own in content.items() if own}
    )


def volume_errors(calculator: Calculator, symbol: str) -> list[float]:
    """The errors of the four phases of an element; none for an element that ACWF does not have."""
    phases = elemental_phases().get(symbol, {})
    return [
        volume_error(minimum(calculator, symbol, name, phase.volume), phase)
        for name, phase in phases.items()
    ]


def volume_error(found: EquationOfState, reference: ElementalPhase) -> float:
    """|V / V_reference - 1|, or infinity without a minimum."""
    error = abs(found.volume / reference.volume - 1)
    return error if np.isfinite(error) else np.inf


def train_counts(data: Path) -> dict[str, int]:
    """Element -> training structures that contain it."""
    per_element = read_census(data)["per_element"]
    return {symbol: row["structures"].get("train", 0) for symbol, row in per_element.items()}


def change_over_all(before: ErrorSummary, after: ErrorSummary) -> float:
    """Geometric mean, over the elements of the thirds, of the ratio of the force errors."""
    elements = [symbol for members in thirds(before).values() for symbol in members]
    ratios = [
        (after.per_element[symbol].force_mae or np.nan)
        / (before.per_element[symbol].force_mae or np.nan)
        for symbol in elements
    ]
    return float(np.exp(np.log(ratios).mean()))


def row_of(
    options: argparse.Namespace, mode: str, seed: int, own: Judged, uniform: Judged
) -> dict[str, Any]:
    """The figures of one run. Changes are against uniform with the same seed, as ratios."""
    counts = train_counts(options.data)
    by_rarity = sorted(own.volumes, key=lambda symbol: (counts[symbol], symbol))
    rare = by_rarity[: len(by_rarity) // 3]
    change = evenness_change(uniform.summary, own.summary)
    row: dict[str, Any] = {
        "mode": mode,
        "seed": seed,
        "force_mae": own.summary.force_mae,
        "energy_mae_per_atom": own.summary.energy_mae_per_atom,
        "relative_force_mae": {
            name: group.relative_force_mae.value
            for name, group in evenness(own.summary).groups.items()
        },
        "force_change": {
            name: [estimate.value, *estimate.interval] for name, estimate in change.groups.items()
        },
        "force_change_over_all": change_over_all(uniform.summary, own.summary),
    }
    for name, elements in (("rare", rare), ("all", by_rarity)):
        row[f"volumes_of_{name}"] = volume_figures(own.volumes, uniform.volumes, elements)
    return row


def volume_figures(
    own: dict[str, list[float]], uniform: dict[str, list[float]], elements: list[str]
) -> dict[str, float]:
    """Shares and medians over the phases of some elements."""
    errors = np.array([error for symbol in elements for error in own[symbol]])
    before = np.array([error for symbol in elements for error in uniform[symbol]])
    both = np.isfinite(errors) & np.isfinite(before)
    found = errors[np.isfinite(errors)]
    return {
        "phases": len(errors),
        "without_minimum": float(np.isinf(errors).mean()),
        "within_10_percent": float((errors < 0.1).mean()),
        "median_error": float(np.median(found)),
        "phases_in_both": int(both.sum()),
        "median_error_in_both": float(np.median(errors[both])),
        "median_error_of_uniform_in_both": float(np.median(before[both])),
    }


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table in Markdown, a run a line."""
    print("| mode | seed | " + " | ".join(GROUPS) + " | all | MAE | V rare | V all |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["mode"], str(row["seed"])]
        for name in GROUPS:
            value, low, high = row["force_change"][name]
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
        cells.append(f"{row['force_change_over_all']:.3f}")
        cells.append(f"{row['force_mae']:.3f}")
        for name in ("rare", "all"):
            volumes = row[f"volumes_of_{name}"]
            missing = 100 * volumes["without_minimum"]
            error = 100 * volumes["median_error_in_both"]
            before = 100 * volumes["median_error_of_uniform_in_both"]
            cells.append(f"{missing:.0f} % none, else {error:.1f} % ({before:.1f})")
        print(f"| {' | '.join(cells)} |")


@rc_context(STYLE)
def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Force errors of the thirds against uniform, and how many volumes come out right."""
    names = list(dict.fromkeys(row["mode"] for row in rows))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    forces, volumes = figure.subplots(1, 2)
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        own = [row for row in rows if row["mode"] == name]
        shift = (index - (len(names) - 1) / 2) * 0.15
        for place, third in enumerate(GROUPS):
            values = [row["force_change"][third][0] for row in own]
            forces.plot([place + shift] * len(own), values, "o", color=colour)
        for place, group in enumerate(("rare", "all")):
            values = [100 * row[f"volumes_of_{group}"]["within_10_percent"] for row in own]
            label = name.replace("_", " and ") if place == 0 else None
            volumes.plot([place + shift] * len(own), values, "o", color=colour, label=label)
    forces.axhline(1.0, color="0.6", linewidth=1)
    forces.set_xticks(range(len(GROUPS)), GROUPS)
    forces.set_ylabel("force error, against uniform")
    forces.set_xlabel("third of the elements")
    volumes.set_xticks([0, 1], ["rarest third", "all elements"])
    volumes.set_ylabel("volumes right to 10 % (%)")
    volumes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train what is missing, and write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("cheap", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--name", default="long_tail_thirds")
    options = parser.parse_args()

    rows = []
    for seed in options.seeds:
        uniform = judge(options, train(options, UNIFORM, seed))
        for mode in options.modes:
            is_uniform = mode == UNIFORM
            own = uniform if is_uniform else judge(options, train(options, mode, seed))
            rows.append(row_of(options, mode, seed, own, uniform))
            print_rows(rows[-1:])

    rows.sort(key=lambda row: (options.modes.index(row["mode"]), row["seed"]))
    print_rows(rows)
    content = {
        "command": "python benchmarks/long_tail_thirds.py DATA CHEAP OUT "
        f"--modes {' '.join(options.modes)} --seeds {' '.join(map(str, options.seeds))} "
        f"--steps {options.steps} --channels {options.channels} --split {options.split}",
        "enrichment": read_info(options.cheap)["source"]["enrichment"]["settings"],
        "rows": rows,
    }
    text = json.dumps(content, indent=1) + "\n"
    (RESULTS / f"{options.name}.json").write_text(text)
    draw(rows, RESULTS / f"{options.name}.png")


if __name__ == "__main__":
    main()
