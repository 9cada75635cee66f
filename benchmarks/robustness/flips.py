"""Single bits flipped in every kind of file that evenfield reads back.

    python benchmarks/robustness/flips.py [--trials 300] [--seed 0] [--only KIND ...]

After each flip, what reads the file is run again. It must give the identical result, or that of an
older good copy, or refuse with one clear error. Another result is `SILENT`: the worst that can
happen. A traceback, a crash and a hang are failures too. A trial is repeated by
`--first K --trials 1` with the same seed.

Writes results/flips.json. The kinds:

    shard, dataset_info, census         reading all structures, the census and the account
    checkpoint, checkpoint_manifest     resuming the run to its end, compared by its weights
    run_config                          the view of a run that pages are drawn from
    model, model_manifest               loading a model folder
    cached_model                        loading a pinned revision through the cache
    hub_model                           loading the newest revision from a folder hub on a disk
    predictions                         reading predictions.npz for a parity plot
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from world import (
    REPO,
    STEPS,
    call,
    digest,
    prepare,
    print_table,
    run_config,
    world_and_copy,
    write_result,
)

from evenfield import model_zoo
from evenfield.data_pipelines.checks.leaks import leaks_among
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import SPLITS
from evenfield.model_zoo.evaluation.predictions import ParityPairs
from evenfield.pretrain.monitor.run_view import RunView
from evenfield.pretrain.run import pretrain


MORE_STEPS = 2  # of a resumed run


# --- what reads the files; each returns a hash of all that it found


def read_data(world: Path) -> str:
    """Every structure of every split, the census and the account of the first data set."""
    collection = Collection([str(world / "data-0")])
    parts: list[Any] = [collection.infos, collection.census()]
    for split in SPLITS:
        if not collection.num_structures(split):
            continue
        for structure in collection.structures(split):
            parts += [structure.structure_id, structure.level_of_theory, split]
            parts += [structure.atomic_numbers, structure.positions, structure.cell]
            for name, value in sorted(structure.labels.items()):
                parts += [name, np.asarray(value, dtype=float)]
    return digest(*parts)


def compare_data(world: Path) -> str:
    """What the two data sets have in common."""
    return digest(leaks_among([world / "data-0", world / "data-1"]))


def resume_run(world: Path) -> str:
    """The weights of the run after two more steps."""
    data = [world / "data-0", world / "data-1"]
    shutil.rmtree(world / "run" / "model")
    config = run_config(data, world / "run", STEPS + MORE_STEPS)
    model = pretrain(config, "must", quiet=True)
    assert model is not None
    return digest((model / "model.safetensors").read_bytes())


def resume_from_older(world: Path) -> str:
    """The same without the newest checkpoint.

    The steps that are done again have other learning rates: the run is longer now.
    """
    *_, newest = sorted((world / "run" / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    return resume_run(world)


def view_run(world: Path) -> str:
    view = RunView.read(world / "run")
    return digest(view.max_steps, view.step)


def load_model(reference: str | Path, hub: Path | None = None) -> str:
    """Weights, architecture, record, evaluation and attachments."""
    model = model_zoo.load(reference, folder_hub=hub)
    parts: list[Any] = [model.potential.config.model_dump(mode="json")]
    parts.append(model.record.model_dump(mode="json"))
    parts.append(model.evaluation.to_json() if model.evaluation else None)
    for name, tensor in sorted(model.potential.state_dict().items()):
        parts += [name, tensor.numpy()]
    for name, content in sorted(model.attachments.items()):
        parts += [name, content]
    return digest(*parts)


def load_folder(world: Path) -> str:
    return load_model(world / "run" / "model")


def load_cached(world: Path) -> str:
    """By the revision that was published, from a hub behind an address: through the cache."""
    os.environ["EVENFIELD_CACHE"] = str(world / "cache")
    # a hub in the memory of this process needs no server
    storage = fsspec.filesystem("memory")
    storage.put(str(world / "hub"), "/hub", recursive=True)
    revision = (world / "revision").read_text()
    return load_model(f"{REPO}@{revision}", "memory://hub")


def load_from_hub(world: Path) -> str:
    """From a hub on this disk, by the name of the model: its reference is read too."""
    return load_model(REPO, world / "hub")


def read_predictions(world: Path) -> str:
    pairs = ParityPairs.read(world / "run" / "model" / ".." / "predictions.npz")
    parts: list[Any] = [pairs.level_names, pairs.level_index]
    for name in sorted(pairs.pairs):
        parts += [name, pairs.pairs[name]]
    return digest(*parts)


# --- the kinds: which files, and who reads them


def files_of(world: Path) -> dict[str, tuple[list[Path], Callable[[Path], str]]]:
    """Kind -> its files, and what reads them."""
    data = world / "data-0"
    run = world / "run"
    checkpoints = sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file())
    model = sorted(path for path in (run / "model").iterdir() if path.is_file())
    cached = sorted(path for path in (world / "cache").rglob("*") if path.is_file())
    hub = sorted(path for path in (world / "hub").rglob("*") if path.is_file())

    is_manifest = [path for path in checkpoints if path.suffix != ".safetensors"]
    kinds = {
        "shard": (sorted(data.glob("*.parquet")), read_data),
        "dataset_info": ([data / "dataset_info.json"], read_data),
        "census": ([data / "census.json"], read_data),
        "fingerprints": ([data / "fingerprints.npy"], compare_data),
        "checkpoint": ([path for path in checkpoints if path not in is_manifest], resume_run),
        "checkpoint_manifest": (is_manifest, resume_run),
        "run_config": ([run / "config.yaml"], view_run),
        "model": ([path for path in model if path.name != "manifest.json"], load_folder),
        "model_manifest": ([run / "model" / "manifest.json"], load_folder),
        "cached_model": (cached, load_cached),
        "hub_model": (hub, load_from_hub),
        "predictions": (sorted(run.glob("predictions*.npz")), read_predictions),
    }
    return {kind: entry for kind, entry in kinds.items() if entry[0]}


def flip(path: Path, rng: np.random.Generator) -> str:
    """Flip one bit of a file; returns where."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(0, len(content)))
    bit = int(rng.integers(0, 8))
    content[place] ^= 1 << bit
    # in place: a new file would be readable where the old one was not
    path.write_bytes(content)
    return f"byte {place} bit {bit}"


def trial(
    number: int,
    seed: int,
    world: Path,
    work: Path,
    only: list[str],
    expected: dict[str, dict[str, str]],
) -> tuple[str, str, dict[str, Any]]:
    """Kind, outcome and details of one flip."""
    rng = np.random.default_rng([seed, number])
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(world, work, symlinks=True)
    kinds = files_of(work)
    chosen = [kind for kind in kinds if not only or kind in only]
    kind = chosen[number % len(chosen)]
    paths, reader = kinds[kind]

    # an empty file has no bit
    paths = [path for path in paths if path.stat().st_size]
    path = paths[int(rng.integers(0, len(paths)))]
    place = flip(path, rng)

    found = call(lambda: reader(work))
    outcome = found.kind
    if found.kind == "done":
        outcome = expected[kind].get(found.value, "SILENT")
    details = {"trial": number, "file": str(path.relative_to(work)), "place": place}
    return kind, outcome, details | {"found": found.value, "seconds": round(found.seconds, 2)}


def expectations(world: Path, work: Path) -> dict[str, dict[str, str]]:
    """Kind -> what a reader may find -> what that means."""
    expected = {}
    for kind, (_, reader) in files_of(world).items():
        expected[kind] = {untouched(kind, reader, world, work): "identical"}
        if reader is resume_run:
            older = untouched(kind, resume_from_older, world, work)
            expected[kind][older] = "older copy"
    return expected


def untouched(kind: str, reader: Callable[[Path], str], world: Path, work: Path) -> str:
    """What an untouched copy gives; read twice, since it must not depend on the copy."""
    answers = set()
    for _ in range(2):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(world, work, symlinks=True)
        found = call(lambda: reader(work))
        if found.kind != "done":
            raise SystemExit(f"{kind}: an untouched copy gives {found}")
        answers.add(found.value)
    if len(answers) > 1:
        raise SystemExit(f"{kind}: two untouched copies differ")
    return answers.pop()


def published_revision(world: Path) -> str:
    """The only revision in the hub."""
    (snapshot,) = (path for path in (world / "hub").rglob("manifest.json"))
    return snapshot.parent.name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND")
    parser.add_argument("--result", type=Path, help="default: results/flips.json")
    options = parser.parse_args()
    prepare()

    outcomes: dict[str, Counter[str]] = {}
    failures = []
    with world_and_copy() as (world, work):
        (world / "revision").write_text(published_revision(world))
        # fills the cache
        call(lambda: load_cached(world))

        expected = expectations(world, work)
        for number in range(options.first, options.first + options.trials):
            kind, outcome, details = trial(
                number, options.seed, world, work, options.only, expected
            )
            outcomes.setdefault(kind, Counter())[outcome] += 1
            if outcome not in ("identical", "older copy", "refused"):
                failures.append({"kind": kind, "outcome": outcome} | details)
                print(f"{kind} {outcome}: {details}", flush=True)

    table = {kind: dict(counts) for kind, counts in sorted(outcomes.items())}
    print_table(table)
    command = f"python benchmarks/robustness/flips.py --trials {options.trials}"
    content = {
        "command": f"{command} --seed {options.seed} --first {options.first}",
        "trials": options.trials,
        "silent": sum(counts["SILENT"] for counts in outcomes.values()),
        "failures": len(failures),
        "outcomes": table,
        "failed": failures,
    }
    write_result("flips", content, options.result)


if __name__ == "__main__":
    main()
