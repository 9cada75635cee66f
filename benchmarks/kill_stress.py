"""Kill a training by SIGKILL at random instants and start it again, many times.

    # TMPDIR=/dev/shm puts the runs into memory; otherwise each save waits for fsync
    python benchmarks/kill_stress.py [--kills 200]

Half of the kills wait until a save has begun. A tiny model on structures that are made here, saved
every second step. After each kill: is the newest checkpoint readable, and how many steps are lost?
At the end of each run: are the weights those of a run that nobody killed, bit for bit, and has
every step one row in its metrics, with the loss that it had there? That holds only if no structure
was left out or seen twice. Writes results/kill_stress.json.

Every training is a fork of one process that has imported everything, so that a start costs a
second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.structure import Structure
from evenfield.pretrain.checkpoints.checkpoints import choose_checkpoint
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


EVERY = 2  # steps between checkpoints
RESULT = Path(__file__).resolve().parent / "results" / "kill_stress.json"


def make_data(folder: Path) -> None:
    """64 rattled metal crystals of 4 atoms with EMT labels."""
    rng = np.random.default_rng(0)
    structures = []
    for k in range(64):
        atoms = bulk(("Cu", "Ag", "Au", "Pt")[k % 4], cubic=True)
        atoms.rattle(0.1, rng=rng)
        structures.append(labelled(atoms, k, "test" if k % 8 == 0 else "train"))
    write_data_set(structures, folder, {"file": "made here", "sha256": ""}, ConvertConfig())


def labelled(atoms: Atoms, number: int, split: str) -> Structure:
    atoms.calc = EMT()
    return Structure.from_atoms(
        atoms,
        level_of_theory="EMT",
        structure_id=f"s{number}",
        group=f"s{number}",
        split=split,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=False),
    )


def config_of(data: Path, out: Path, steps: int) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "data": str(data),
            "out": str(out),
            "max_steps": steps,
            "evaluate_every": 10**6,
            "model": {
                "channels": 4,
                "l_max": 1,
                "readout_size": 8,
                "radial_hidden": 8,
                "cutoff": 3.5,
            },
            "stream": {"edge_budget": 200, "window_blocks": 1},
            "schedule": {"warmup_steps": 3},
            "average": {"decay": 0.9},
            "checkpoints": {"every": EVERY, "keep": 2},
        }
    )


def start(config: PretrainConfig) -> int:
    """Train in a fork, from the newest whole checkpoint; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        pretrain(config, "auto", quiet=True)
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def rows_of(out: Path) -> list[dict]:
    """Whole rows of the metrics; a kill may have cut off the last one."""
    path = out / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def await_a_save(folder: Path, pid: int) -> None:
    """Return when a save has begun or the process has ended (a zombie until it is waited for)."""
    while not any(folder.glob(".tmp-step-*")):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.0005)


def look(out: Path, tally: Counter) -> None:
    """What a kill has left behind."""
    folder = out / "checkpoints"
    newest, skipped = choose_checkpoint(folder)
    tally["kills inside a save"] += any(name.startswith(".tmp") for name in skipped)
    tally["torn folders under a final name"] += any(name.startswith("step-") for name in skipped)
    rows = rows_of(out)
    reached = rows[-1]["step"] if rows else 0
    saved = int(newest.removeprefix("step-")) if newest else 0
    tally["kills before the first checkpoint"] += not newest
    tally["kills that lost more than an interval"] += reached - saved > EVERY
    tally["steps done again"] += max(0, reached - saved)


def stress(data: Path, folder: Path, kills: int, steps: int, rng: random.Random) -> dict:
    """Start runs until `kills` were killed; each run ends and is compared before the next."""
    untouched = config_of(data, folder / "untouched", steps)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(untouched), 0)[1]) == 0
    lifetime = time.monotonic() - started
    expected = (folder / "untouched" / "model" / "model.safetensors").read_bytes()
    losses = [(row["step"], row["loss"]) for row in rows_of(folder / "untouched")]
    tally: Counter = Counter()
    run = 0
    while tally["kills"] < kills:
        config = config_of(data, folder / f"run-{run}", steps)
        run = run + 1
        out = Path(config.out)
        done = False
        while not done:
            pid = start(config)
            if tally["kills"] < kills:
                time.sleep(rng.uniform(0.0, lifetime))
                if rng.random() < 0.5:
                    await_a_save(out / "checkpoints", pid)
                    time.sleep(rng.uniform(0.0, 0.01))
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == -signal.SIGKILL:
                tally["kills"] += 1
                look(out, tally)
            else:
                tally["resumes that failed"] += code != 0
                done = True
        tally["runs ended"] += 1
        same = (out / "model" / "model.safetensors").is_file()
        same = same and (out / "model" / "model.safetensors").read_bytes() == expected
        tally["runs with other weights"] += not same
        tally["runs with other losses"] += [
            (row["step"], row["loss"]) for row in rows_of(out)
        ] != losses
    return {"seconds of an untouched run": round(lifetime, 2), **tally}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    importlib.import_module("deepspeed")  # here, so that the forks need not
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name) / "data")
        figures = stress(
            Path(name) / "data",
            Path(name),
            arguments.kills,
            arguments.steps,
            random.Random(arguments.seed),
        )
    result = {
        "command": f"python benchmarks/kill_stress.py --kills {arguments.kills} "
        f"--steps {arguments.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "steps of a run": arguments.steps,
        "steps between checkpoints": EVERY,
        **figures,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
