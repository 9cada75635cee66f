"""SIGKILL at random instants of every command that writes a result.

    # TMPDIR=/dev/shm puts the files into memory; otherwise each save waits for fsync
    python benchmarks/robustness/kills.py [--kills 200] [--seed 0] [--only COMMAND ...]

Three kinds of promises are tested.

1. A command that replaces a result (convert, pretrain, finetune, describe, attach, publish and zoo
   build, each over an older result) is killed. Afterwards the old or the new result must be there,
   whole, and the same command must then succeed. Half of the kills wait until the command has begun
   to change files.
2. `resume`: a training that is saved every second step is killed and started again, many times.
   After each kill: is the newest checkpoint readable, and how many steps are lost? At the end of
   each run: are the weights those of a run that nobody killed, bit for bit, and has every step one
   row in its metrics, with the loss that it had there? That holds only if no structure was left out
   or seen twice.
3. `learn`: a loop of `evenfield learn` under pressure, whose refit stalls and is replaced by a
   training, is killed and started again, a quarter of the times inside a save. At the end of each
   loop: are the weights those of a loop that nobody killed, bit for bit, and was the oracle asked
   for the same labels, each of them once?

    python benchmarks/robustness/kills.py --only learn --kills 20 \
        --result benchmarks/results/kills_learn.json

Writes results/kills.json. Every command is a fork of one process that has imported everything, so a
start costs little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.build import bulk
from flips import read_data
from world import (
    EVERY,
    LEVELS,
    REPO,
    STEPS,
    call,
    digest,
    evenfield,
    make_in_a_fork,
    prepare,
    print_table,
    run_config,
    world_and_copy,
    write_result,
    write_source,
)

from evenfield import model_zoo
from evenfield.finetune.zoo_build.build import ZooRecipe, build_zoo_model
from evenfield.pretrain.checkpoints.checkpoints import choose_checkpoint
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain
from evenfield.simulation.learn import loop, stall
from evenfield.simulation.learn.config import LearnConfig


RESUMED_STEPS = 40  # of a run that is killed and resumed
LATEST_KILL = 0.02  # s after a command began to change files


# --- commands that replace a result


@dataclass(frozen=True)
class Command:
    """A command that replaces an older result in a copy of the world."""

    run: Callable[[Path], None]
    read: Callable[[Path], str]
    """A hash of the result; raises for one that is not whole."""
    places: tuple[str, ...]
    """Folders that it changes, for the kills that wait for that."""


def convert_again(world: Path) -> None:
    source = write_source(world / "other.extxyz", LEVELS[0], number=40, seed=7)
    words = ["data", "convert", str(source), str(world / "data-0"), f"level_of_theory={LEVELS[0]}"]
    words += ["split_by=structure", "licence=CC0-1.0", "test_share=0.2", "valid_share=0.2"]
    evenfield([*words, "--workers", "1", "--overwrite"])


def pretrain_again(world: Path) -> None:
    config = run_config([world / "data-0", world / "data-1"], world / "run", STEPS - 2)
    pretrain(config, "no", quiet=True, overwrite=True)


def finetune_again(world: Path) -> None:
    model = world / "run" / "model"
    words = ["finetune", str(model), str(world / "few.extxyz"), str(world / "tuned")]
    evenfield([*words, f"source.level_of_theory={LEVELS[0]}", "strategy=refit", "--overwrite"])


def describe(world: Path) -> None:
    model = world / "run" / "model"
    evenfield(["hub", "describe", str(model), "description=described again", "name=again"])


def attach(world: Path) -> None:
    words = ["finetune", "attach", str(world / "bare"), str(world / "data-0")]
    evenfield([*words, "--overwrite"])


def publish(world: Path) -> None:
    """Another model under the same name: it becomes the newest revision."""
    evenfield(
        [
            "hub",
            "publish",
            "--allow-failed",
            str(world / "tuned"),
            REPO,
            "--folder-hub",
            str(world / "hub"),
        ]
    )


def read_run(world: Path) -> str:
    """The model of the run. While a run is replaced, the old one is kept next to it."""
    places = [world / "run", *sorted(world.glob("run.old-*"))]
    whole = [place / "model" for place in places if (place / "model").is_dir()]
    return read_model(whole[0] if whole else world / "run" / "model")


def zoo_build(world: Path) -> None:
    recipe = ZooRecipe(
        num_structures=40,
        description="A toy.",
        pretrain={
            "max_steps": 3,
            "evaluate_every": 2,
            "model": {"channels": 4, "l_max": 1, "readout_size": 8},
        },
    )
    build_zoo_model(recipe, "toy", world / "work", world / "zoo", workers=1)


def read_model(reference: str | Path, hub: Path | None = None) -> str:
    """Weights and record; the rest is verified by loading."""
    model = model_zoo.load(reference, folder_hub=hub)
    parts: list[Any] = [model.record.name, model.record.description, sorted(model.attachments)]
    # the card's pictures hold no time, and the posterior no random numbers
    parts += [digest(content) for _, content in sorted(model.attachments.items())]
    for name, tensor in sorted(model.potential.state_dict().items()):
        parts += [name, tensor.numpy()]
    return digest(*parts)


COMMANDS = {
    "convert": Command(convert_again, read_data, ("data-0",)),
    "pretrain": Command(pretrain_again, read_run, ("run",)),
    "finetune": Command(finetune_again, lambda world: read_model(world / "tuned"), ("tuned",)),
    "describe": Command(describe, lambda world: read_model(world / "run/model"), ("run/model",)),
    "attach": Command(attach, lambda world: read_model(world / "bare"), ("bare",)),
    "publish": Command(publish, lambda world: read_model(REPO, world / "hub"), ("hub",)),
    "zoo_build": Command(zoo_build, lambda world: read_model(world / "zoo/toy"), ("zoo",)),
}


def prepare_replacements(world: Path) -> None:
    """What the commands need besides the world: an older result for each."""
    few = write_source(world / "few.extxyz", LEVELS[0], number=8, seed=3)
    model = world / "run" / "model"
    words = ["finetune", str(model), str(few), str(world / "tuned")]
    level = f"source.level_of_theory={LEVELS[0]}"
    # another share of the structures than the command that replaces it
    evenfield([*words, level, "strategy=refit", "num_structures=4"])
    shutil.copytree(model, world / "zoo" / "toy")


class Killer:
    """Runs one command many times over fresh copies of a world, and kills it."""

    def __init__(self, command: Command, world: Path, work: Path, rng: random.Random) -> None:
        self.command = command
        self.world = world
        self.work = work
        self.rng = rng

        self._fresh_copy()
        self.old = self._read_or_stop("before")
        self.seconds = self._run_to_the_end()
        self.new = self._read_or_stop("after")
        if self.old == self.new:
            raise NotRunError("the command changes nothing that is compared")

    def kill_once(self) -> tuple[str, str]:
        """What a kill left: `old`, `new`, `BROKEN` or `RERUN FAILED`; and details."""
        self._fresh_copy()
        pid = self._start()
        if self.rng.random() < 0.5:
            self._await_a_change(pid)
            time.sleep(self.rng.uniform(0.0, LATEST_KILL))
        else:
            time.sleep(self.rng.uniform(0.0, self.seconds))
        os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        found = call(lambda: self.command.read(self.work))
        state = {self.old: "old", self.new: "new"}.get(found.value, "BROKEN")
        if state == "BROKEN" or (ended and state == "old"):
            return "BROKEN", f"{found.kind}: {found.value}"

        # what a killed command leaves must not be in the way of the next
        again = call(lambda: str(self.command.run(self.work)), 600)
        found = call(lambda: self.command.read(self.work))
        if again.kind != "done" or found.value != self.new:
            return "RERUN FAILED", f"{again.kind}: {again.value}; then {found.kind}: {found.value}"
        return state, ""

    def _fresh_copy(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.world, self.work, symlinks=True)

    def _read_or_stop(self, when: str) -> str:
        found = call(lambda: self.command.read(self.work))
        if found.kind != "done":
            raise NotRunError(f"no result {when} the command: {found.value}")
        return found.value

    def _run_to_the_end(self) -> float:
        done = call(lambda: str(self.command.run(self.work)), 600)
        if done.kind != "done":
            raise NotRunError(f"{done.kind}: {done.value}")
        return done.seconds

    def _start(self) -> int:
        pid = os.fork()
        if pid:
            return pid
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            self.command.run(self.work)
        except BaseException:
            os._exit(1)
        os._exit(0)

    def _await_a_change(self, pid: int) -> None:
        """Return when names around the result have changed, or the process has ended."""
        before = self._names()
        while self._names() == before:
            if has_ended(pid):
                return
            time.sleep(0.0005)

    def _names(self) -> list[str]:
        """Names in the folders of the result and next to them; temporary ones come and go."""
        names = []
        for place in self.command.places:
            folder = self.work / place
            for parent in (folder.parent, folder):
                # it may vanish between two looks
                with suppress(FileNotFoundError):
                    names += sorted(path.name for path in parent.iterdir())
        return names


class NotRunError(Exception):
    """A command cannot be tested; the text says why."""


def has_ended(pid: int) -> bool:
    """Whether a child is a zombie, which it is until it is waited for."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z"


# --- runs that are killed and resumed


def start_run(config: PretrainConfig) -> int:
    """Train in a fork, from the newest whole checkpoint; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        pretrain(config, "auto", quiet=True)
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Whole rows of the metrics; a kill may have cut off the last one."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def losses_of(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows_of(out)]


def weights_of(out: Path) -> bytes | None:
    path = out / "model" / "model.safetensors"
    return path.read_bytes() if path.is_file() else None


def await_a_save(folder: Path, pid: int) -> None:
    """Return when a save has begun or the process has ended."""
    while not any(folder.glob(".tmp-step-*")):
        if has_ended(pid):
            return
        time.sleep(0.0005)


def look(out: Path, tally: Counter[str]) -> None:
    """Count what a kill has left behind."""
    newest, skipped = choose_checkpoint(out / "checkpoints")
    tally["kills inside a save"] += any(name.startswith(".tmp") for name in skipped)
    tally["torn folders under a final name"] += any(name.startswith("step-") for name in skipped)

    rows = rows_of(out)
    reached = rows[-1]["step"] if rows else 0
    saved = int(newest.removeprefix("step-")) if newest else 0
    tally["kills before the first checkpoint"] += not newest
    tally["kills that lost more than an interval"] += reached - saved > EVERY
    tally["steps done again"] += max(0, reached - saved)


def resume_often(
    data: list[Path], folder: Path, kills: int, steps: int, rng: random.Random
) -> dict[str, Any]:
    """Start runs until `kills` were killed; each run ends and is compared before the next."""
    untouched = folder / "untouched"
    started = time.monotonic()
    pid = start_run(run_config(data, untouched, steps))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lifetime = time.monotonic() - started
    weights = weights_of(untouched)
    losses = losses_of(untouched)

    tally: Counter[str] = Counter()
    while tally["kills"] < kills:
        out = folder / f"run-{tally['runs ended']}"
        config = run_config(data, out, steps)
        has_finished = False
        while not has_finished:
            pid = start_run(config)
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
                has_finished = True
        tally["runs ended"] += 1
        tally["runs with other weights"] += weights_of(out) != weights
        tally["runs with other losses"] += losses_of(out) != losses
        shutil.rmtree(out)
    return {"seconds of an untouched run": round(lifetime, 2), "steps of a run": steps, **tally}


# --- loops of `evenfield learn` that are killed and go on


def loop_config(log: Path) -> LearnConfig:
    """A small loop whose last model is one of a training."""
    return LearnConfig.model_validate(
        {
            "oracle": "counting_oracle:CountingEMT",
            "oracle_settings": {"log": str(log)},
            "level_of_theory": "loop",
            "labels": 12,
            "initial": 8,
            "batch": 2,
            "steps": 12,
            "every": 3,
            "temperatures": [600.0],
            "pressures": [5.0],
            "guard": {"force_radius": 0.15},
            "when_stalled": "full",
            "gradient": {"max_steps": 2},
            "seed": 3,
        }
    )


def start_loop(model: Path, out: Path, log: Path) -> int:
    """Learn in a fork, from what is there; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        copper = bulk("Cu", cubic=True)
        alloy = bulk("Cu", a=3.83, cubic=True)
        alloy.symbols[:2] = "Au"
        for seed, atoms in enumerate((copper, alloy)):
            atoms.rattle(0.05, seed=seed)
        # so few rounds do not always stall by themselves
        loop.stall_of = lambda rounds, *_: "it was time" if rounds else None
        # two trainings instead of four
        stall.NUM_PARTS = 2
        base = model_zoo.load(model)
        loop.learn(base, [copper, alloy], out, loop_config(log), say=lambda _: None)
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def saves_of(out: Path) -> set[Path]:
    """Temporary files and folders of saves of the loop itself, also those that a kill has left."""
    found = set()
    for pattern in (".*.tmp", ".*.new"):
        # the labeller, which writes answers, is not killed
        found |= {path for path in out.rglob(pattern) if not path.name.startswith(".answer")}
    return found


def await_a_new_save(out: Path, pid: int) -> None:
    """Return when a save has begun or the process has ended."""
    before = saves_of(out)
    while not saves_of(out) - before:
        if has_ended(pid):
            return
        time.sleep(0.0005)


def end_of_loop(out: Path, log: Path) -> dict[str, Any]:
    """What must not depend on kills: weights, what was asked for, and by what was learned."""
    rounds = sorted((out / "rounds").glob("*/round.json"))
    learned = [json.loads(path.read_text())["learned"] for path in rounds]
    return {
        "weights": digest(weights_of(out) or b""),
        "asked": log.read_text().split(),
        "strategies": [one["strategy"] for one in learned if one is not None],
    }


def learn_often(model: Path, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Start loops until `kills` were killed; each loop ends and is compared before the next."""
    # of the same name, which is that of the model
    untouched = folder / "untouched" / "loop"
    log = folder / "untouched" / "log"
    untouched.parent.mkdir(parents=True)
    started = time.monotonic()
    pid = start_loop(model, untouched, log)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lifetime = time.monotonic() - started
    expected = end_of_loop(untouched, log)
    assert "full" in expected["strategies"], expected["strategies"]
    assert len(set(expected["asked"])) == len(expected["asked"])

    tally: Counter[str] = Counter()
    while tally["kills"] < kills:
        place = folder / f"loop-{tally['loops ended']}"
        place.mkdir()
        out = place / "loop"
        has_finished = False
        while not has_finished:
            pid = start_loop(model, out, place / "log")
            if tally["kills"] < kills:
                time.sleep(rng.uniform(0.0, lifetime))
                left = saves_of(out)
                # until there are enough of them, every second kill waits for a save
                if tally["kills inside a save"] < kills / 4 and rng.random() < 0.5:
                    await_a_new_save(out, pid)
                os.kill(pid, signal.SIGKILL)

            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == -signal.SIGKILL:
                tally["kills"] += 1
                tally["kills inside a save"] += bool(saves_of(out) - left)
            else:
                tally["loops that failed to go on"] += code != 0
                has_finished = True
        tally["loops ended"] += 1
        found = end_of_loop(out, place / "log")
        tally["loops with other weights"] += found["weights"] != expected["weights"]
        tally["loops that asked for other labels"] += found["asked"] != expected["asked"]
        again = len(found["asked"]) - len(set(found["asked"]))
        tally["labels asked for twice"] += again
        shutil.rmtree(place)
    return {
        "seconds of an untouched loop": round(lifetime, 2),
        "labels of a loop": len(expected["asked"]),
        "learned by": expected["strategies"],
        **tally,
    }


# --- all of them


def kill_commands(
    names: list[str], world: Path, work: Path, kills: int, seed: int
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """Outcomes by command, and what failed."""
    outcomes: dict[str, dict[str, int]] = {}
    failures = []
    for name in names:
        rng = random.Random(f"{seed} {name}")
        try:
            killer = Killer(COMMANDS[name], world, work, rng)
        except NotRunError as reason:
            outcomes[name] = {"NOT RUN": kills}
            failures.append({"command": name, "outcome": "NOT RUN", "details": str(reason)})
            print(f"{name} NOT RUN: {reason}", flush=True)
            continue
        counts: Counter[str] = Counter()
        for number in range(kills):
            outcome, details = killer.kill_once()
            counts[outcome] += 1
            if details:
                failure = {"command": name, "kill": number, "outcome": outcome, "details": details}
                failures.append(failure)
                print(f"{name} {outcome}: {details}", flush=True)
        outcomes[name] = dict(counts)
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*COMMANDS, "resume", "learn"]
    parser.add_argument("--kills", type=int, default=200, help="over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=RESUMED_STEPS, help="of a resumed run")
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="COMMAND")
    parser.add_argument("--result", type=Path, help="default: results/kills.json")
    options = parser.parse_args()
    prepare()

    names = [name for name in options.only if name in COMMANDS]
    kills_each = -(-options.kills // len(options.only))
    only = "" if options.only == every else f"--only {' '.join(options.only)} "
    content: dict[str, Any] = {
        "command": f"python benchmarks/robustness/kills.py {only}--kills {options.kills} "
        f"--seed {options.seed}",
        "kills of each command": kills_each,
    }
    with world_and_copy() as (world, work):
        if names:
            make_in_a_fork(prepare_replacements, world)
            outcomes, failures = kill_commands(names, world, work, kills_each, options.seed)
            print_table(outcomes)
            content |= {"failures": len(failures), "outcomes": outcomes, "failed": failures}
        if "resume" in options.only:
            data = [world / "data-0", world / "data-1"]
            folder = work.parent / "runs"
            rng = random.Random(options.seed)
            tally = resume_often(data, folder, kills_each, options.steps, rng)
            content["resume"] = {"steps between checkpoints": EVERY, **tally}
            print(json.dumps(content["resume"], indent=1))
        if "learn" in options.only:
            model = world / "run" / "model"
            rng = random.Random(f"{options.seed} learn")
            content["learn"] = learn_often(model, work.parent / "loops", kills_each, rng)
            print(json.dumps(content["learn"], indent=1))
    write_result("kills", content, options.result)


if __name__ == "__main__":
    main()
