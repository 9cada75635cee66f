"""The ways to choose labels of `evenfield learn`, on a pool of structures that DFT has labelled.

    python benchmarks/learning_from_a_pool.py POOL WORK [--model evenfield-1] [--seeds 0 1 2]
        [--out FILE]

POOL is a file of extended xyz with REF_energy, REF_forces and a `group` for each structure. Every
fourth group, in the order of the names, is held out, and judges. Up to 600 structures of the others
are the pool. If all structures are of one group, each composition is a group instead. All ways of
one seed begin with the same 8 random structures, and take batches of 8 up to 64. Models of 8, 16,
32 and 64 labels are judged. There is no dynamics: the labels are those of the file, and the models
are made by the loop's refit, which does not change the features.

Measured with zr_h (hydrides of zirconium, DFT) and fitsnap_wbe (tungsten, beryllium and their
alloys, PBE), neither of which any level of evenfield-1 has seen.

Models stand in WORK, so that a run that was interrupted goes on. With --out, a picture of the same
name is drawn as well.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from label_curves import errors, summarised

from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.safety.uncertainty import atom_features, observe
from evenfield.model_zoo import load
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.simulation.learn import store
from evenfield.simulation.learn.choose import by_determinant, by_distance
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.fit import fit


WAYS = ("determinant", "random", "farthest", "committee")
LEVEL = "pool"
# Labels in a batch, most labels of a run, and numbers of labels at which a model is judged.
BATCH = 8
MOST = 64
JUDGED = (8, 16, 32, 64)
# Of the groups, one in so many judges.
EVERY = 4
# Most atoms of a structure, and most structures: a run should take minutes.
MOST_ATOMS = 54
MOST_POOL = 600
MOST_TEST = 200
# eV/A; labels with a larger force are not learned from, as in the loop.
LARGEST_FORCE = 50.0


def read(path: Path) -> list[Atoms]:
    """The structures of the file that are small enough, with forces that are small enough."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        # all at once, because ASE seeks backwards
        content = gzip.decompress(content)
    frames = ase.io.read(io.StringIO(content.decode()), ":", format="extxyz")
    return [
        atoms
        for atoms in frames
        if len(atoms) <= MOST_ATOMS
        and np.linalg.norm(atoms.arrays["REF_forces"], axis=1).max() <= LARGEST_FORCE
    ]


def split(frames: list[Atoms]) -> tuple[list[Structure], list[Structure], list[str]]:
    """The pool, the structures that judge, and the names of the groups that judge."""
    rng = np.random.default_rng(0)
    names = {atoms.info["group"] for atoms in frames}
    if len(names) == 1:
        for atoms in frames:
            formula, _ = atoms.symbols.formula.reduce()
            atoms.info["group"] = formula.format("hill")
        names = {atoms.info["group"] for atoms in frames}
    groups = sorted(names)[::EVERY]
    labelled = [_structure(atoms, number) for number, atoms in enumerate(frames)]
    test = [one for one in labelled if one.group in groups]
    pool = [one for one in labelled if one.group not in groups]
    return _drawn(pool, MOST_POOL, rng), _drawn(test, MOST_TEST, rng), groups


def _structure(atoms: Atoms, number: int) -> Structure:
    """The structure with its labels from the file."""
    labels: dict[str, Any] = {"forces": atoms.arrays["REF_forces"]}
    labels["energy"] = float(atoms.info["REF_energy"])
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    group = atoms.info["group"]
    return Structure.from_atoms(bare, LEVEL, f"{number}", group=group, split="train", **labels)


def _drawn(structures: list[Structure], most: int, rng: np.random.Generator) -> list[Structure]:
    """At most `most` of the structures, drawn at random, in their order."""
    places = rng.permutation(len(structures))[:most]
    return [structures[place] for place in sorted(places)]


def chosen(
    way: str,
    model: LoadedModel | None,
    pool: list[Structure],
    features: list[np.ndarray],
    labelled: list[int],
    seed: int,
) -> list[int]:
    """Places of the next batch in the pool.

    model: the newest, which only the committee needs. features: (N, d) of each structure in the
    pool. labelled: places of those that have labels.
    """
    unlabelled = [place for place in range(len(pool)) if place not in set(labelled)]
    if way == "random":
        rng = np.random.default_rng([seed, len(labelled)])
        best = rng.permutation(len(unlabelled))[:BATCH]
    elif way == "committee":
        assert model is not None, "the committee is that of a model"
        candidates = [pool[place] for place in unlabelled]
        seen = observe(model.potential, model.uncertainties[LEVEL], candidates)
        largest = np.zeros(len(unlabelled))
        np.maximum.at(largest, seen.structure_index, seen.disagreement)
        best = np.argsort(-largest, kind="stable")[:BATCH]
    else:
        of_unlabelled = [features[place] for place in unlabelled]
        of_labelled = [features[place] for place in labelled]
        if way == "determinant":
            best, _ = by_determinant(np.concatenate(of_labelled), of_unlabelled, BATCH)
        else:
            best, _ = by_distance(of_labelled, of_unlabelled, BATCH)
    return [unlabelled[place] for place in best]


def run(
    base: LoadedModel,
    pool: list[Structure],
    features: list[np.ndarray],
    test: list[Structure],
    work: Path,
    way: str,
    seed: int,
) -> list[dict[str, Any]]:
    """The curve of one way and seed: a point for each model that is judged."""
    # the oracle is never asked, but a loop's settings must name one
    config = LearnConfig(oracle="EMT", level_of_theory=LEVEL, seed=seed)
    labelled = np.random.default_rng([seed]).permutation(len(pool))[:BATCH].tolist()
    points: list[dict[str, Any]] = []
    while True:
        number = len(labelled)
        # all ways begin with the same model
        run_name = f"first-{seed}" if number == BATCH else f"{way}-{seed}"
        folder = work / run_name / f"{number:03d}"
        out = folder / "model"
        # only the committee asks a model what to label
        if (number in JUDGED or way == "committee") and not out.exists():
            learned = [pool[place] for place in labelled]
            # nothing here reads the digest of the labels
            fit(base, learned, "0" * 64, out, config, folder / "learned.json")
        if number in JUDGED:
            if not (folder / "point.json").exists():
                store.write(
                    folder / "point.json", {"labels": number} | errors(load(out), LEVEL, test)
                )
            points.append(store.read(folder / "point.json"))
        if number >= MOST:
            return points
        next_batch = folder / f"next-{way}.json"
        if not next_batch.exists():
            model = load(out) if way == "committee" else None
            places = chosen(way, model, pool, features, labelled, seed)
            store.write(next_batch, {"places": places})
        labelled += store.read(next_batch)["places"]


def main() -> None:
    """Print a JSON object for each run, and write all of them to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load(arguments.model)
    pool, test, groups = split(read(arguments.pool))
    # features are the same at all levels, and the base model does not have that of the pool
    level = base.record.default_level
    at_known_level = [replace(one, level_of_theory=level) for one in pool]
    all_features, _ = atom_features(base.potential, at_known_level)
    features = np.split(all_features, np.cumsum([len(one) for one in pool])[:-1])
    squares = np.concatenate([np.square(one.forces) for one in test])
    about = {
        "model": base.reference,
        "pool": arguments.pool.name,
        "pool_structures": len(pool),
        "test_structures": len(test),
        "test_groups": groups,
        "test_force_rms": float(np.sqrt(squares.mean())),
    }
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for way in WAYS:
            began = time.process_time()
            curve = run(base, pool, features, test, arguments.work, way, seed)
            seconds = round(time.process_time() - began, 1)
            rows.append({"way": way, "seed": seed, "seconds": seconds, "curve": curve})
            print(json.dumps(rows[-1]), flush=True)
            result = summarised(about, rows, arguments.out)
    print(json.dumps(result["labels over those of"], indent=1))


if __name__ == "__main__":
    main()
