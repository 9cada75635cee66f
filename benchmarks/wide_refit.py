"""The plain and the wide refit, full fine-tuning and the choice of `auto`, on several targets.

    python benchmarks/wide_refit.py OUT.json DATA [DATA ...] [--model evenfield-1] [--seeds 0 1 2]
        [--strategies refit wide auto] [--structures 16] [--test 60]
        [key=value ...]

DATA are folders of converted data sets. Every strategy gets the same structures. Prints the errors
on the test split at every stage and the processor seconds of the whole fine-tuning, how much of the
way from the plain refit to `full` the wide one takes, and how far `auto` is from the best. With
`auto`, every candidate is finished, under its name with a star: as a part of `auto` it has fewer
structures to learn from at first. A repeated command skips what OUT has.

    python benchmarks/wide_refit.py --cost

prints processor seconds of the design matrix: 256 features by directions over 64 by reverse passes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.auto.choose import best_of, compare
from evenfield.finetune.closed_form.by_directions import jacobian_by_directions, moved_atoms
from evenfield.finetune.closed_form.design_rows import feature_jacobian
from evenfield.finetune.closed_form.widen import widened
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.train import GradientReport
from evenfield.finetune.run import finetune
from evenfield.finetune.set_up import set_up
from evenfield.finetune.state import FineTuning, Stage
from evenfield.finetune.strategies import AUTO, fewest_to_hold_out
from evenfield.finetune.target import Target, hold_out, open_target


VALID_SHARE = 0.2
Row = dict[str, Any]

CELLS_OF_CUBIC_TITANIUM = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


def target_of(data: str, strategy: str, seed: int, options: argparse.Namespace) -> Target:
    """The structures to learn from, to choose by and to test on."""
    target = open_target(
        data,
        num_structures=options.structures,
        seed=seed,
        # held out below: doing it twice would lose the structures of the first time
        valid_share=0.0,
    )
    # 16 structures are all there is: what is held out comes from them, and not from a split
    train, valid = hold_out(target.train, VALID_SHARE, seed, fewest_to_hold_out(strategy))
    chosen = np.random.default_rng(99).permutation(len(target.test))[: options.test]
    test = [target.test[place] for place in chosen]
    assert len(train) + len(valid) == options.structures, "a structure was lost"
    return replace(target, train=train, valid=valid, test=test)


def one(
    model: model_zoo.LoadedModel, data: str, strategy: str, seed: int, options: argparse.Namespace
) -> list[Row]:
    """Fine-tune once; with `auto`, finish every candidate, and not the chosen one alone."""
    words = [f"strategy={strategy}", f"seed={seed}", *options.settings]
    config = load_settings(FineTuneConfig, None, words)
    target = target_of(data, strategy, seed, options)
    if strategy == AUTO:
        return every_candidate(model, target, config)

    started = time.process_time()
    result = finetune(model, target, config)
    refuse_interrupted(result.gradient)
    seconds = time.process_time() - started
    return [row_of(target, strategy, seed, result.stages, seconds, result.refit.features)]


def every_candidate(
    model: model_zoo.LoadedModel, target: Target, config: FineTuneConfig
) -> list[Row]:
    """A row for each candidate of `auto`, finished, and one for the choice.

    The chosen candidate is what `auto` gives: the choice changes nothing else. Processor seconds of
    a candidate are those of finishing, and those of the choice have the learning of all candidates.
    """
    started = time.process_time()
    run = FineTuning(model, target, config, quiet=True)
    run.judge("pretrained")
    set_up(run, trust_units=False)
    tried, candidates = compare(run)
    learning = time.process_time() - started

    rows = []
    for candidate in tried:
        finishing = time.process_time()
        refuse_interrupted(candidate.learned.gradient)
        fitted = candidate.strategy.finish(candidate.run, candidate.learned)
        refuse_interrupted(fitted.gradient)
        seconds = time.process_time() - finishing
        name = candidate.candidate.name
        stages = candidate.run.stages
        rows.append(
            row_of(target, f"{name} *", config.seed, stages, seconds, fitted.refit.features)
        )
    # candidates that were not tried have no row
    names = [candidate.candidate.name for candidate in tried]
    chosen = candidates[best_of(candidates)].name
    row = rows[names.index(chosen)]
    rows.append(
        row
        | {
            "strategy": AUTO,
            "chosen": chosen,
            "candidates": [candidate.to_dict() for candidate in candidates],
            "processor_seconds": round(learning + row["processor_seconds"], 1),
        }
    )
    return rows


def refuse_interrupted(report: GradientReport | None) -> None:
    """A signal ends a training in good order, and its figures look like those of a whole one."""
    if report is not None and report.interrupted:
        raise SystemExit("a training was interrupted; its row is not written")


def row_of(
    target: Target,
    strategy: str,
    seed: int,
    stages: dict[str, Stage],
    seconds: float,
    features: int | None,
) -> Row:
    """One fine-tuning as a row of the results."""
    shown = {}
    for name, stage in stages.items():
        errors = stage.errors
        shown[name] = {
            "force_mae": errors.force_mae,
            "energy_mae_per_atom": errors.energy_mae_per_atom,
            "seconds": round(stage.seconds, 1),
        }
    assert target.folder is not None, "a benchmark reads converted data sets"
    return {
        "target": target.folder.name,
        "strategy": strategy,
        "seed": seed,
        "features": features,
        "stages": shown,
        "processor_seconds": round(seconds, 1),
    }


def cost(model: model_zoo.LoadedModel) -> None:
    """Processor seconds of the design matrix of one structure of titanium, best of three."""
    potential = model.potential
    wide = widened(potential, 192, seed=0)
    levels = potential.config.levels_of_theory
    for repeat in CELLS_OF_CUBIC_TITANIUM:
        atoms = bulk("Ti", "fcc", a=4.1, cubic=True) * repeat
        atoms.rattle(0.1, seed=0)
        labels = {
            "energy": 0.0,
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.zeros((3, 3)),
        }
        structure = Structure.from_atoms(atoms, levels[0], "cell", "cell", **labels)
        batch = Batch.from_structure(structure, potential.cutoff, levels, torch.float32)
        moved = moved_atoms(batch)
        plain = min(_seconds(lambda b=batch: feature_jacobian(potential, b, [])) for _ in range(3))
        directions = min(
            _seconds(lambda b=batch, m=moved: jacobian_by_directions(wide, b, [], m))
            for _ in range(3)
        )
        print(
            f"{len(atoms)} atoms: {plain:.3f} s plain, {directions:.3f} s wide, "
            f"{directions / plain:.2f} times",
            flush=True,
        )


def _seconds(work: Any) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def summary(rows: list[Row]) -> None:
    """The mean over seeds, at the last stage of every strategy."""
    for target in dict.fromkeys(row["target"] for row in rows):
        of_strategy = {}
        energies = {}
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            own = [r for r in rows if (r["target"], r["strategy"]) == (target, strategy)]
            if not own:
                continue
            last = [list(row["stages"].values())[-1] for row in own]
            force = float(np.mean([stage["force_mae"] for stage in last]))
            energy = float(np.mean([stage["energy_mae_per_atom"] for stage in last]))
            seconds = float(np.mean([row["processor_seconds"] for row in own]))
            of_strategy[strategy] = force
            energies[strategy] = energy
            print(
                f"{target} {strategy} ({len(own)}): {force:.4f} eV/A, "
                f"{1000 * energy:.1f} meV/atom, {seconds:.0f} processor seconds"
            )
        if {"refit", "wide", "full *"} <= set(of_strategy):
            way = of_strategy["refit"] - of_strategy["full *"]
            taken = (of_strategy["refit"] - of_strategy["wide"]) / way
            print(f"{target}: the wide refit takes {taken:.2f} of the way to full (forces)")
        if "auto" in of_strategy:
            for name, errors in (("forces", of_strategy), ("energies", energies)):
                others = {key: value for key, value in errors.items() if key.endswith("*")}
                best = min(others, key=lambda key: others[key])
                above = errors["auto"] / others[best] - 1
                print(f"{target}: auto is {100 * above:+.0f} % from {best}, the best in {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("words", nargs="*", metavar="DATA or key=value")
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", default=["refit", "wide", "auto"])
    parser.add_argument("--structures", type=int, default=16)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = model_zoo.load(options.model)
    if options.cost:
        cost(model)
        return
    options.settings = [word for word in options.words if "=" in word]
    data = [word for word in options.words if "=" not in word]

    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {(row["target"], row["strategy"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for strategy in options.strategies:
            for folder in data:
                if (Path(folder).name, strategy, seed) not in done:
                    rows += one(model, folder, strategy, seed, options)
                    print(json.dumps(rows[-1]), flush=True)
                    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    summary(rows)


if __name__ == "__main__":
    main()
