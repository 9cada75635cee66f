"""Run by test_checkpoints.py: saves step 2 and dies by SIGKILL, once at each file operation.

Prints one JSON line: where it was killed, and the step of the newest whole checkpoint afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from evenfield.pretrain.checkpoints import checkpoints
from evenfield.pretrain.checkpoints.checkpoints import save_checkpoint, whole_checkpoints


OPERATIONS = (
    (checkpoints, "save_file"),
    (os, "fsync"),
    (os, "replace"),
    (os, "rename"),
    (shutil, "rmtree"),
    (Path, "rename"),
    (Path, "replace"),
)


class Killer:
    """Lets so many file operations pass, then kills this process before the next one."""

    def __init__(self, passes: int) -> None:
        self.passes, self.names = passes, []

    def watch(self, owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if len(self.names) == self.passes:
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(name)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)


class TinyEngine:
    """An engine whose only weight is the last step that it was saved at."""

    rank, world_size = 0, 1

    def __init__(self, weight: int = -1) -> None:
        self.weight = weight

    def state(self) -> dict[str, Tensor]:
        return {"weight/a": torch.tensor([self.weight])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.weight = int(state["weight/a"])


def save_half(tensors: dict[str, Tensor], path: Path) -> None:
    """Dies with the file half written."""
    path.write_bytes(b"ha")
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save(folder: Path, step: int) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    problem = save_checkpoint(folder, step, TinyEngine(step), {"epoch": step}, keep=1)
    assert problem is None, problem


def save_and_die_half_way(folder: Path) -> None:
    checkpoints.save_file = save_half
    save(folder, 2)


def save_and_die(folder: Path, passes: int) -> None:
    killer = Killer(passes)
    for owner, name in OPERATIONS:
        killer.watch(owner, name)
    save(folder, 2)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    outcomes = {}
    steps = {1: root / "with-1", 2: root / "with-2"}
    for step, folder in steps.items():
        assert in_child(lambda folder=folder, step=step: save(folder, step)) == 0

    def newest_after(name: str, start: Path, work: Callable[[Path], None]) -> bool:
        """Whether `work` on a copy of the run was killed; notes what is left."""
        folder = root / name
        shutil.copytree(start, folder)
        ended = in_child(lambda: work(folder))
        assert ended in (0, -signal.SIGKILL), f"{name} ended with {ended}"
        whole = whole_checkpoints(folder)
        outcomes[name] = (
            json.loads((whole[-1] / "manifest.json").read_text())["step"] if whole else None
        )
        return ended != 0

    assert newest_after("half", steps[1], save_and_die_half_way)
    for prefix, start in (("first", steps[1]), ("again", steps[2])):
        passes = 0
        while newest_after(
            f"{prefix}-{passes}", start, lambda folder, n=passes: save_and_die(folder, n)
        ):
            passes += 1
        assert passes > 2
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
