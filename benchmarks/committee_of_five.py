"""The uncertainty of one model, compared with that of a committee of five separate trainings.

    python benchmarks/committee_of_five.py DATA WORK [--steps 3000] [--calls 25] [--draws 200]

DATA is multi_element_longtail.extxyz.gz. Two chemistries are held out of training: all structures
with S or Se, elements that no model sees, and all others with both an alkali metal and a halogen,
elements that the models see in other compounds. The rest of the test split is called inside.

Five models of 16 channels differ in the seeds of their weights and of the order of the data. Each
gets a record of its uncertainty, as `evenfield finetune attach` makes it. The first is compared
with the committee by three measures: the deviation of the five forces on an atom, their largest
difference, and a spread that is fitted to errors of training structures, in the form that ours has.

Trainings are kept in WORK, and an interrupted one goes on. Ranges are from 5 to 95 % of --draws
resamplings of whole groups of structures. Writes results/committee_of_five.json and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.data import atomic_numbers
from element_left_out import converted
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from uncertainty_cost import seconds_in_turn

from evenfield.core.figures.style import COLOURS, STYLE, figure_png, plain_log_ticks
from evenfield.core.files import write_atomically
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.checks.trust import all_as_level, area_under_curve, measures
from evenfield.finetune.safety.trust import attach_trust
from evenfield.finetune.safety.uncertainty import (
    FORCE_FLOOR,
    MOST_FITTED,
    Observed,
    observe,
    with_spread,
)
from evenfield.model_zoo import LoadedModel, load
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.uncertainty.conformal import Scores
from evenfield.model_zoo.uncertainty.record import INGREDIENTS, LevelUncertainty
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


RESULT = Path(__file__).parent / "results" / "committee_of_five.json"

SEEDS = (0, 1, 2, 3, 4)
CHANNELS = 16
UNSEEN_ELEMENTS = ("S", "Se")
ALKALI_METALS = ("Li", "Na", "K", "Rb", "Cs")
HALOGENS = ("F", "Cl", "Br", "I")

# Measures: those of `evenfield check trust`, and what they are called here,
OURS = {
    "spread": "spread",
    "committee": "bootstrap readouts",
    "distance": "distance",
    "force": "size of the force",
}
# and those of the committee.
DEVIATION = "five: deviation"
LARGEST = "five: largest difference"
FITTED = "five: fitted spread"
# Whose errors.
OF_FIRST = "of the first model"
OF_MEAN = "of the mean of five"
COVERAGE = 0.9


@dataclass(frozen=True)
class Judged:
    """What the measures say about the N atoms of some structures, and how large the errors are."""

    seen: Observed
    said: dict[str, np.ndarray]
    """Measure -> its values (N,); a larger one predicts a larger error."""
    errors: dict[str, np.ndarray]
    """Whose force -> length of its error on each atom (N,), eV/A."""

    def of_structures(self, measure: str) -> np.ndarray:
        """Mean of a measure over the atoms of each structure (S,)."""
        place = self.seen.structure_index
        return np.bincount(place, self.said[measure]) / np.bincount(place)


def main() -> None:
    """Train, compare, and write the result and its picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="extxyz file with labels in REF_* columns")
    parser.add_argument("work", type=Path, help="folder for data sets and models")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--calls", type=int, default=25)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)

    without, unseen = two_data_sets(options.data, options.work)
    folders = [trained(without, options.work, seed, options.steps) for seed in SEEDS]
    level = load(str(folders[0])).level_to_use()
    seconds_of_record = []
    for folder in folders:
        started = time.process_time()
        attach_trust(folder, without, level_of_theory=level, overwrite=True)
        seconds_of_record.append(time.process_time() - started)

    models = [load(str(folder)) for folder in folders]
    uncertainty = models[0].uncertainties[level]
    groups = {"valid": list(iter_structures(without, "valid"))}
    test = list(iter_structures(without, "test"))
    groups["inside"] = [one for one in test if not is_alkali_halide(one)]
    groups["alkali halides"] = [one for one in test if is_alkali_halide(one)]
    groups["S and Se"] = all_as_level(unseen, level)
    train = list(iter_structures(without, "train"))
    fitted = fitted_to_training(models, uncertainty, train)
    all_judged = {
        name: judged(models, uncertainty, fitted, group) for name, group in groups.items()
    }

    command = f"python benchmarks/committee_of_five.py {options.data.name} WORK"
    settings = f"--steps {options.steps} --calls {options.calls} --draws {options.draws}"
    result = {
        "command": f"{command} {settings}",
        "channels": CHANNELS,
        "seeds": SEEDS,
        "structures": {name: len(group) for name, group in groups.items()},
        "atoms": {name: len(one.seen.numbers) for name, one in all_judged.items()},
        "training structures": len(train),
        "mean force errors (eV/A)": mean_errors(all_judged),
        "inside": figures_of_order(all_judged["inside"], all_judged["valid"], options.draws),
        "AUROC": {
            name: figures_of_outside(all_judged["inside"], all_judged[name], options.draws)
            for name in ("S and Se", "alkali halides")
        },
        "each of the five by itself": [
            figures_of_one(model, level, groups, all_judged) for model in models
        ],
        "cost": cost(models, options.calls),
        "seconds": {
            "median training, without compiling": seconds_of_training(folders),
            "median record of uncertainty, processor": round(
                statistics.median(seconds_of_record), 1
            ),
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    RESULT.write_text(text + "\n")
    write_atomically(RESULT.with_suffix(".png"), picture(all_judged))


def two_data_sets(source: Path, work: Path) -> tuple[Path, Path]:
    """The data set without the unseen elements, and that of the structures with one of them.

    In the first, all structures with both an alkali metal and a halogen are in the test split.
    """
    elements = f"[{', '.join(UNSEEN_ELEMENTS)}]"
    pairs = ", ".join(f"[{metal}, {halogen}]" for metal in ALKALI_METALS for halogen in HALOGENS)
    without = converted(
        source, work / "without", f"without_elements={elements}", f"hold_out_pairs=[{pairs}]"
    )
    return without, converted(source, work / "with", f"with_elements={elements}")


def is_alkali_halide(structure: Structure) -> bool:
    """Whether it has both an alkali metal and a halogen."""
    present = set(structure.elements)
    of_both = ({atomic_numbers[symbol] for symbol in one} for one in (ALKALI_METALS, HALOGENS))
    return all(present & elements for elements in of_both)


def trained(data: Path, work: Path, seed: int, steps: int) -> Path:
    """The model folder of one training, which is done unless it is there already."""
    folder = work / f"seed-{seed}"
    if not (folder / "model" / "manifest.json").is_file():
        words = [
            f"data={data}",
            f"out={folder}",
            f"max_steps={steps}",
            f"evaluate_every={steps}",
            f"seed={seed}",
            f"stream.seed={seed}",
            f"model.channels={CHANNELS}",
            "compute.compiled=true",
        ]
        if pretrain(load_settings(PretrainConfig, None, words), resume="auto") is None:
            sys.exit("stopped: the same command goes on")
    return folder / "model"


def seconds_of_training(folders: list[Path]) -> float:
    """Median over trainings of the wall time (s): the number of steps times the median step."""
    totals = []
    for folder in folders:
        lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        steps = [event for event in events if event["event"] == "step"]
        totals.append(steps[-1]["step"] * statistics.median(step["seconds"] for step in steps))
    return round(statistics.median(totals), 1)


def answers(
    models: list[LoadedModel], uncertainty: LevelUncertainty, structures: list[Structure]
) -> tuple[Observed, np.ndarray]:
    """What the first model says about labelled structures, and forces (5, N, 3) of all models."""
    seen = observe(models[0].potential, uncertainty, structures)
    pairs = [predict(model.potential, structures).forces for model in models]  # label, prediction
    forces = np.stack([one[..., 1] for one in pairs])
    # `observe` and `predict` must have the atoms in the same order
    np.testing.assert_allclose(forces[0] - pairs[0][..., 0], seen.force_error, atol=1e-3)
    return seen, forces


def of_committee(seen: Observed, forces: np.ndarray) -> Observed:
    """What a committee with these forces (5, N, 3) says, in the form of what a model says.

    Its force is the mean of the five, and its ingredients are the size of that force and the
    deviation of the five. It has no posterior and no distance: these ingredients are the same for
    all atoms, and a fit gives them no power.
    """
    mean = forces.mean(0)
    deviation = np.linalg.norm(forces.std(0, ddof=1), axis=1)
    size = np.linalg.norm(mean, axis=1)
    constant = np.ones_like(size)
    return replace(
        seen,
        force_error=seen.force_error + mean - forces[0],
        ingredients=np.stack([size, deviation, constant, constant]),
    )


def fitted_to_training(
    models: list[LoadedModel], uncertainty: LevelUncertainty, train: list[Structure]
) -> LevelUncertainty:
    """An uncertainty whose spread is that of the committee, in the form and by the fit of ours."""
    order = np.random.default_rng(0).permutation(len(train))
    sizes = np.cumsum([len(train[index]) for index in order])
    chosen = [train[index] for index in order[sizes <= MOST_FITTED]]
    return with_spread(uncertainty, of_committee(*answers(models, uncertainty, chosen)))


def judged(
    models: list[LoadedModel],
    uncertainty: LevelUncertainty,
    fitted: LevelUncertainty,
    structures: list[Structure],
) -> Judged:
    """Ask the first model and the committee about labelled structures.

    uncertainty: of the first model. fitted: of the committee.
    """
    seen, forces = answers(models, uncertainty, structures)
    committee = of_committee(seen, forces)
    of_first = measures(uncertainty, seen, np.ones(len(seen.numbers), bool))
    pairs = combinations(forces, 2)
    said = {ours: of_first[name] for name, ours in OURS.items()} | {
        DEVIATION: committee.ingredients[INGREDIENTS.index("committee")],
        LARGEST: np.max([np.linalg.norm(one - other, axis=1) for one, other in pairs], axis=0),
        FITTED: fitted.spread(committee.ingredients, seen.numbers),
    }
    return Judged(seen, said, {OF_FIRST: seen.error, OF_MEAN: committee.error})


def mean_errors(all_judged: dict[str, Judged]) -> dict[str, dict[str, float]]:
    """Structures -> whose force -> mean length of its errors."""
    return {
        name: {whose: round(float(error.mean()), 4) for whose, error in one.errors.items()}
        for name, one in all_judged.items()
    }


def compared(measure: str) -> tuple[str, ...]:
    """Whose errors a measure is compared with: for the committee, first those of its mean force."""
    return (OF_MEAN, OF_FIRST) if measure in (DEVIATION, LARGEST, FITTED) else (OF_FIRST,)


def figures_of_order(inside: Judged, valid: Judged, num_draws: int) -> dict[str, Any]:
    """How well each measure predicts the errors on atoms of known chemistry.

    valid: structures that give the scales of the 90 % radii.
    """
    of_mixed = of_several_elements(inside.seen)
    rows = {}
    for measure, values in inside.said.items():
        for whose in compared(measure):
            error = inside.errors[whose]
            scores = valid.errors[whose] / (valid.said[measure] + FORCE_FLOOR)
            radius = Scores.of(scores, 0).quantile(COVERAGE) * (values + FORCE_FLOOR)
            rows[f"{measure}, error {whose}"] = {
                "rank correlation": rank_correlation(values, error),
                "rank correlation, structures of several elements": rank_correlation(
                    values[of_mixed], error[of_mixed]
                ),
                "share of the best order": share_of_best_order(values, error),
                "covered by 90 % radii": round(float((error <= radius).mean()), 4),
                "median 90 % radius (eV/A)": round(float(np.median(radius)), 4),
                "mean 90 % radius (eV/A)": round(float(radius.mean()), 4),
            }

    draw = draws_of_groups(inside.seen)
    differences: dict[str, list[float]] = {DEVIATION: [], FITTED: []}
    for _ in range(num_draws):
        atoms = draw()
        ours = rank_correlation(inside.said["spread"][atoms], inside.errors[OF_FIRST][atoms])
        for measure, found in differences.items():
            values = inside.said[measure][atoms]
            found.append(ours - rank_correlation(values, inside.errors[OF_MEAN][atoms]))
    return {
        "groups of structures": len(np.unique(inside.seen.groups)),
        "structures of several elements": facts_of_atoms(inside, of_mixed),
        "structures of one element": facts_of_atoms(inside, ~of_mixed),
        "rows": rows,
        "rank correlation of the spread minus that of five, each with its own error": {
            measure: range_of(found) for measure, found in differences.items()
        },
    }


def facts_of_atoms(inside: Judged, chosen: np.ndarray) -> dict[str, float]:
    """How large the labels and errors are on some of the atoms: a mask (N,)."""
    label = inside.seen.label_size[chosen]
    error = inside.errors[OF_FIRST][chosen]
    return {
        "atoms": int(chosen.sum()),
        "median size of the labels (eV/A)": round(float(np.median(label)), 4),
        "median error of the first model (eV/A)": round(float(np.median(error)), 4),
    }


def of_several_elements(seen: Observed) -> np.ndarray:
    """Whether each atom (N,) is in a structure of several elements.

    More than half of the atoms of these data are in crystals of one element, with small errors.
    """
    place = seen.structure_index
    several = [len(set(seen.numbers[place == index])) > 1 for index in range(place[-1] + 1)]
    return np.array(several)[place]


def rank_correlation(values: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation of a measure and the errors of atoms (N,)."""
    return round(float(spearmanr(values, error).statistic), 4)


def share_of_best_order(values: np.ndarray, error: np.ndarray) -> float:
    """How much the order by a measure gains over a random one, over what the best order gains.

    The curve of an order is the mean error of the atoms (N,) that remain, while those with the
    largest values are removed one by one. What counts is the area below it. The best order removes
    the largest errors first, and has a share of 1.
    """

    def area(order: np.ndarray) -> float:
        kept = np.cumsum(error[order]) / np.arange(1, len(order) + 1)
        return float(kept.mean())

    random = float(error.mean())
    return round((random - area(np.argsort(values))) / (random - area(np.argsort(error))), 4)


def figures_of_outside(inside: Judged, outside: Judged, num_draws: int) -> dict[str, Any]:
    """How well each measure tells atoms and structures of a held-out chemistry from inside ones."""
    is_unseen = np.isin(outside.seen.numbers, [atomic_numbers[one] for one in UNSEEN_ELEMENTS])
    parts = {"all atoms": np.ones(len(is_unseen), bool)}
    if is_unseen.any():
        parts |= {"atoms of these elements": is_unseen, "atoms beside them": ~is_unseen}
    of_mixed = of_several_elements(inside.seen)
    rows = {}
    for measure, values in outside.said.items():
        row = {name: auroc(inside.said[measure], values[chosen]) for name, chosen in parts.items()}
        row["all atoms, against inside ones of several elements"] = auroc(
            inside.said[measure][of_mixed], values
        )
        row["structures"] = auroc(inside.of_structures(measure), outside.of_structures(measure))
        rows[measure] = row
    # for comparison the error itself, which no measure knows
    for whose, error in outside.errors.items():
        rows[f"error {whose}"] = {
            name: auroc(inside.errors[whose], error[chosen]) for name, chosen in parts.items()
        }

    draw_inside, draw_outside = draws_of_groups(inside.seen), draws_of_groups(outside.seen)
    differences: dict[str, list[float]] = {"spread": [], "distance": []}
    for _ in range(num_draws):
        within, beyond = draw_inside(), draw_outside()
        of_five = auroc(inside.said[DEVIATION][within], outside.said[DEVIATION][beyond])
        for measure, found in differences.items():
            ours = auroc(inside.said[measure][within], outside.said[measure][beyond])
            found.append(ours - of_five)
    return {
        "atoms": {name: int(chosen.sum()) for name, chosen in parts.items()},
        "groups of structures": len(np.unique(outside.seen.groups)),
        "rows": rows,
        "all atoms, minus the deviation of five": {
            measure: range_of(found) for measure, found in differences.items()
        },
    }


def figures_of_one(
    model: LoadedModel,
    level: str,
    groups: dict[str, list[Structure]],
    all_judged: dict[str, Judged],
) -> dict[str, float]:
    """The main figures of one model with its own record, next to one of the committee."""
    uncertainty = model.uncertainties[level]
    said = {}
    errors = {}
    for name in ("inside", "S and Se", "alkali halides"):
        seen = observe(model.potential, uncertainty, groups[name])
        said[name] = measures(uncertainty, seen, np.ones(len(seen.numbers), bool))
        errors[name] = seen.error
    committee = all_judged["inside"].said[DEVIATION]
    found = {
        "mean force error inside (eV/A)": round(float(errors["inside"].mean()), 4),
        "rank correlation of spread": rank_correlation(said["inside"]["spread"], errors["inside"]),
        "rank correlation of the deviation of five": rank_correlation(committee, errors["inside"]),
    }
    for name in ("S and Se", "alkali halides"):
        for measure in ("spread", "distance"):
            value = auroc(said["inside"][measure], said[name][measure])
            found[f"AUROC of {measure}, {name}"] = value
    return found


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Area under the ROC curve: how often the outside value of a random pair is the larger one."""
    both = np.concatenate([inside, outside])
    return round(area_under_curve(both, np.arange(len(both)) >= len(inside)), 4)


def draws_of_groups(seen: Observed) -> Callable[[], np.ndarray]:
    """A function that draws as many groups of structures as there are, with replacement.

    It returns the indices of their atoms.
    """
    rng = np.random.default_rng(0)
    _, place = np.unique(seen.atom_groups, return_inverse=True)
    order = np.argsort(place, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(place))[:-1])

    def draw() -> np.ndarray:
        chosen = rng.integers(len(members), size=len(members))
        return np.concatenate([members[index] for index in chosen])

    return draw


def range_of(values: list[float]) -> list[float]:
    """The quantiles of 5 and 95 % of the values."""
    return [round(float(one), 4) for one in np.quantile(values, [0.05, 0.95])]


def cost(models: list[LoadedModel], calls: int) -> dict[str, float]:
    """Processor time of the first model with its uncertainty, over that of five plain models.

    Of 64 atoms that move as in dynamics. Five calculators search neighbours and fill results five
    times. The least that a committee can cost is five passes over one batch that is made already.
    """
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True) * (2, 2, 2)
    rng = np.random.default_rng(0)
    plain = [model.calculator(warn_outside=False) for model in models]
    with_uncertainty = models[0].calculator(warn_outside=False, uncertainty=True)
    potentials = [model.potential.eval() for model in models]
    config = potentials[0].config
    structure = Structure.from_atoms(atoms, models[0].level_to_use(), "cost")
    dtype = potentials[0].readout.weight.dtype
    batch = Batch.from_structure(structure, config.cutoff, config.levels_of_theory, dtype)

    def five_calculators() -> None:
        for calculator in plain:
            calculator.calculate(atoms)

    def five_networks() -> None:
        for potential in potentials:
            with torch.no_grad():
                potential(batch)

    def move() -> None:
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)

    ways = {
        "one plain call": lambda: plain[0].calculate(atoms),
        "one call with uncertainty": lambda: with_uncertainty.calculate(atoms),
        "five plain calls": five_calculators,
        "five networks on one batch": five_networks,
    }
    spent = seconds_in_turn(ways, calls, move)
    ours = np.array(spent["one call with uncertainty"])
    return {f"{way} (ms)": round(1000 * statistics.median(spent[way]), 2) for way in ways} | {
        f"with uncertainty, over {way}": round(float(np.median(ours / spent[way])), 3)
        for way in ways
        if way != "one call with uncertainty"
    }


@rc_context(STYLE)
def picture(all_judged: dict[str, Judged]) -> bytes:
    """A picture of errors over predicted ones, atom by atom: our spread and the committee's."""
    drawing = Figure(figsize=(12, 5), layout="constrained")
    sides = (
        ("spread", OF_FIRST, "One model: predicted spread (eV/A)"),
        (DEVIATION, OF_MEAN, "Five models: deviation of their forces (eV/A)"),
    )
    for axes, (measure, whose, label) in zip(
        drawing.subplots(1, 2, sharey=True), sides, strict=True
    ):
        for name, colour in zip(("inside", "alkali halides", "S and Se"), COLOURS, strict=False):
            one = all_judged[name]
            # an element that was never seen has an infinite spread
            drawn = np.isfinite(one.said[measure])
            shown = np.random.default_rng(0).permutation(np.flatnonzero(drawn))[:3000]
            text = name if drawn.all() else f"{name} ({(~drawn).sum()} atoms infinite)"
            values, error = one.said[measure][shown], one.errors[whose][shown]
            axes.scatter(values, error, s=5, color=colour, alpha=0.35, label=text, lw=0)
        inside = all_judged["inside"]
        bins = np.array_split(np.argsort(inside.said[measure]), 20)
        middle = [np.median(inside.said[measure][chosen]) for chosen in bins]
        typical = [np.median(inside.errors[whose][chosen]) for chosen in bins]
        label_of_line = "median of a twentieth of the atoms inside"
        axes.plot(middle, typical, color="black", marker="o", markersize=4, label=label_of_line)
        axes.set(xscale="log", yscale="log", xlabel=label, xlim=(1e-3, 20), ylim=(1e-3, 20))
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
        axes.set_ylabel(f"error of the force {whose} (eV/A)")
        axes.legend(fontsize=9, loc="lower right", markerscale=2)
    return figure_png(drawing)


if __name__ == "__main__":
    main()
