"""Mutated files through conversion and reading: each must succeed or fail clearly.

    python benchmarks/fuzz_convert.py --files 2000

Each case breaks one file (extxyz, a Parquet shard, dataset_info.json or census.json) by seeded byte
flips, cuts, lost or doubled lines, or swapped numbers, and uses it as a user would: units are
checked, the file converted, the data set inspected and read.  Any other exception is a crash; so is
the death of the process, which names its case in results/fuzz_convert.json.running.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.census.census import count_shards, read_census
from evenfield.data_pipelines.checks.inspection import inspect
from evenfield.data_pipelines.checks.unit_check import UnitError, check_units
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.data_pipelines.structure import SPLITS


RESULT = Path(__file__).resolve().parent / "results" / "fuzz_convert.json"
CLEAR = (EvenfieldError, UnitError)
CONFIG = ConvertConfig(
    trust_units=True,
    level_of_theory="made",
    skip_bad=True,
    split_by="structure",
    test_share=0.3,
    valid_share=0.3,
)
NUMBER = re.compile(rb"-?\d+\.?\d*(?:[eE][-+]?\d+)?")


def write_source(path: Path) -> None:
    """A dozen crystals and molecules with all labels."""
    rng = np.random.default_rng(0)
    frames = []
    for atoms in [
        bulk("Cu", cubic=True),
        bulk("NaCl", "rocksalt", a=5.64),
        molecule("CH3OH"),
        molecule("H2O"),
    ] * 3:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        labels: dict[str, Any] = {
            "energy": rng.normal(),
            "forces": rng.normal(size=atoms.positions.shape),
        }
        if atoms.pbc.all():
            labels["stress"] = rng.normal(0, 0.01, 6)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    ase.io.write(path, frames)


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes become others."""
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The file ends early."""
    return data[: rng.integers(0, len(data))]


def lose_line(data: bytes, rng: np.random.Generator) -> bytes:
    """A line is missing."""
    lines = data.splitlines(keepends=True)
    del lines[rng.integers(0, len(lines))]
    return b"".join(lines)


def double_line(data: bytes, rng: np.random.Generator) -> bytes:
    """A line is repeated."""
    lines = data.splitlines(keepends=True)
    k = int(rng.integers(0, len(lines)))
    return b"".join([*lines[: k + 1], *lines[k:]])


def swap_number(data: bytes, rng: np.random.Generator) -> bytes:
    """A number becomes an insane one, or another number of the file."""
    numbers = list(NUMBER.finditer(data))
    if not numbers:
        return flip(data, rng)
    place = numbers[rng.integers(0, len(numbers))]
    insane = [
        b"nan",
        b"-inf",
        b"1e300",
        b"1e6",
        b"-1",
        b"0",
        b"1e-300",
        b"99999999999999999999",
        b"7",
    ]
    new = [*insane, numbers[rng.integers(0, len(numbers))].group()][
        rng.integers(0, len(insane) + 1)
    ]
    return data[: place.start()] + new + data[place.end() :]


MUTATIONS: list[Callable[[bytes, np.random.Generator], bytes]] = [
    flip,
    cut,
    lose_line,
    double_line,
    swap_number,
]


def use(folder: Path) -> str:
    """Look at a data set, then read all of it."""
    info = read_info(folder)
    inspect(folder)
    read_census(folder)
    count_shards(folder / name for name in info["shards"]).to_dict()
    for split in SPLITS:
        if info["num_structures"].get(split):
            list(iter_structures(folder, split))
    return "success"


def convert_and_use(source: Path, out: Path) -> str:
    """Check the units, convert whatever they are, then read the outcome."""
    check_units(str(source), CONFIG)
    info = convert(source, out, CONFIG, workers=1)
    assert info is not None
    use(out)
    return "quarantine" if info["records"]["rejected"] else "success"


def outcome(case: int, good: Path, work: Path) -> tuple[str, str]:
    """Kind of file and what came of breaking it; a crash is named with its error."""
    rng = np.random.default_rng([2026, case])
    mutate = MUTATIONS[rng.integers(0, len(MUTATIONS))]
    kind = ("extxyz", "extxyz", "shard", "info", "census")[case % 5]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        if kind == "extxyz":
            (work / "good.extxyz").write_bytes(mutate((good / "good.extxyz").read_bytes(), rng))
            return kind, convert_and_use(work / "good.extxyz", work / "out")
        shutil.copytree(good / "set", work / "set")
        shards = sorted(path.name for path in (good / "set").glob("*.parquet"))
        shard = shards[rng.integers(0, len(shards))]
        path = (
            work
            / "set"
            / {"shard": shard, "info": "dataset_info.json", "census": "census.json"}[kind]
        )
        path.write_bytes(mutate(path.read_bytes(), rng))
        if kind == "shard":  # as if the account belonged to it, so that reading gets past the size
            info = json.loads((work / "set" / "dataset_info.json").read_text())
            info["shards"][shard]["bytes"] = path.stat().st_size
            (work / "set" / "dataset_info.json").write_text(json.dumps(info))
        return kind, use(work / "set")
    except CLEAR as error:
        return kind, type(error).__name__
    except Exception as error:
        return kind, f"CRASH {mutate.__name__}: {type(error).__name__}: {error}"[:300]


def fuzz(num_files: int, first: int = 0, running: Path | None = None) -> dict[str, dict[str, int]]:
    """Outcome counts by kind of file over cases first..first + num_files."""
    counts: dict[str, Counter[str]] = {}
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        good.mkdir()
        write_source(good / "good.extxyz")
        convert(good / "good.extxyz", good / "set", CONFIG, workers=1)
        for case in range(first, first + num_files):
            if running:
                running.write_text(str(case))
            kind, result = outcome(case, good, Path(folder) / "work")
            counts.setdefault(kind, Counter())[result] += 1
            if result.startswith("CRASH"):
                print(f"case {case}, {kind}: {result}", flush=True)
    return {kind: dict(counter.most_common()) for kind, counter in sorted(counts.items())}


def main() -> None:
    """Run and write results/fuzz_convert.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="first case, to repeat one")
    arguments = parser.parse_args()
    running = RESULT.with_suffix(".json.running")
    counts = fuzz(arguments.files, arguments.first, running)
    running.unlink()
    command = " ".join(["python benchmarks/fuzz_convert.py", *sys.argv[1:]])
    crashes = sum(
        n for counter in counts.values() for name, n in counter.items() if name.startswith("CRASH")
    )
    result = {"command": command, "files": arguments.files, "crashes": crashes, "outcomes": counts}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
