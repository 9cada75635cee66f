"""Are stated uncertainties true? Coverage, order and outsiders, for several calibrations.

    python benchmarks/uncertainty_quality.py MODEL DATA --out FILE.json [--outside FOLDER ...]
        [--seeds 0 1 2]

MODEL has a record that was calibrated on the validation split of DATA, a converted data set. The
test split judges it. For the seeds, groups of structures of both splits are dealt out again, half
of them to calibrate and half to judge. Structures of --outside are of another chemistry. Where
the record has radii of the stress, their spread is compared with the deviation of the stress by the
posterior itself, which takes one backward pass for each feature: on every second test structure of
up to 24 atoms.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.check import Figure
from evenfield.diagnostics.checks.trust import all_as_level, judged, told_apart
from evenfield.finetune.closed_form.design_rows import feature_jacobian
from evenfield.finetune.safety.uncertainty import (
    TRANSPOSED,
    Observed,
    calibrated,
    joined,
    observe,
)
from evenfield.model_zoo import load


def main() -> None:
    """Write one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("data", type=Path, help="folder of a converted data set")
    parser.add_argument("--outside", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    model = load(arguments.model)
    level = model.level_to_use()
    own = model.uncertainties[level]
    seen = {split: observed(model.potential, own, arguments.data, split) for split in SPLITS}
    figures, lines = judged(own, seen["test"])
    result = {
        "model": model.reference,
        "level": level,
        "data": arguments.data.name,
        "bytes": len(model.attachments["uncertainty.safetensors"]),
        "stated split": numbers(figures),
        "lines": lines,
    }
    for folder in arguments.outside:
        others = observe(model.potential, own, all_as_level(folder, level))
        figures, lines = told_apart(own, seen["test"], others, folder.name)
        result[f"outside: {folder.name}"] = numbers(figures)
        result["lines"] += lines

    if own.stress is not None:
        result["exact posterior of the stress"] = exact_stress(model.potential, own, arguments.data)

    both = joined([seen["valid"], seen["test"]])
    # the record's own scale must not be multiplied twice
    bare = replace(both, energy_deviation=both.energy_deviation / own.energy_scale)
    plain = replace(own, energy_scale=1.0)
    for seed in arguments.seeds:
        names = np.unique(bare.groups)
        chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
        mine = calibrated(plain, part(bare, np.isin(bare.groups, chosen)))
        others = part(bare, ~np.isin(bare.groups, chosen))
        scaled = replace(others, energy_deviation=others.energy_deviation * mine.energy_scale)
        result[f"seed {seed}"] = numbers(judged(mine, scaled)[0])
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(result["lines"]))


SPLITS = ("valid", "test")
# fields of `Observed` with one entry for each structure
OF_STRUCTURES = (
    "groups",
    "energy_error",
    "energy_deviation",
    "stress_error",
    "stress_ingredients",
)


def observed(potential, own, data: Path, split: str) -> Observed:
    """All structures of one split at the level of the record."""
    structures: list[Structure] = [
        one for one in iter_structures(data, split) if one.level_of_theory == own.level
    ]
    return observe(potential, own, structures)


def exact_stress(potential, own, data: Path) -> dict[str, float]:
    """Rank correlations with the error of the stress: of its posterior deviation, and the spread.

    The deviation is that of the readout weights: the stress is linear in them.
    """
    structures = [
        one
        for one in iter_structures(data, "test")
        if one.level_of_theory == own.level and "stress" in one.labels and len(one) <= 24
    ][::2]
    head = potential.config.levels_of_theory.index(own.level)
    size = potential.readout.weight.shape[1]
    factor = float(potential.scale[head]) * own.factor[:size]

    started = time.process_time()
    deviations = []
    for one in structures:
        levels = potential.config.levels_of_theory
        dtype = potential.readout.weight.dtype
        batch = Batch.from_structure(one, potential.config.cutoff, levels, dtype)
        _, _, slopes = feature_jacobian(potential, batch, [])  # (d, 1, 3, 3)
        along = np.tensordot(factor.T, slopes[:, 0].double().numpy(), axes=1)
        deviations.append(np.linalg.norm(along))
    seconds = time.process_time() - started

    started = time.process_time()
    seen = observe(potential, own, structures)
    seconds_of_spread = time.process_time() - started
    known = np.isfinite(seen.stress_error)
    exact = np.array(deviations)[known]
    spread = own.stress.spread(seen.stress_ingredients)[known]
    error = seen.stress_error[known]
    return {
        "structures": int(known.sum()),
        "posterior and error": round(float(spearmanr(exact, error).statistic), 4),
        "spread and error": round(float(spearmanr(spread, error).statistic), 4),
        "spread and posterior": round(float(spearmanr(spread, exact).statistic), 4),
        "seconds of the posterior": round(seconds, 1),
        "seconds of all predictions with their spread": round(seconds_of_spread, 1),
    }


def part(whole: Observed, structures: np.ndarray) -> Observed:
    """The structures (S,) that are chosen."""
    atoms = structures[whole.structure_index]
    place = np.cumsum(structures) - 1
    content = {}
    for name, value in vars(whole).items():
        chosen = structures if name in OF_STRUCTURES else atoms
        content[name] = value[:, chosen] if name in TRANSPOSED else value[chosen]
    content["structure_index"] = place[content["structure_index"]]
    return Observed(**content)


def numbers(figures: list[Figure]) -> dict[str, float]:
    """Name -> value."""
    return {figure.name: round(float(figure.value), 4) for figure in figures}


if __name__ == "__main__":
    main()
