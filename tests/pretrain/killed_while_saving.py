"""Run by test_checkpoints.py: saves step 2 beside step 1 and dies by SIGKILL, once at each file operation.

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

from evenfield.pretrain.checkpoints import save_checkpoint, whole_checkpoints


OPERATIONS = ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree"), (Path, "rename"), (Path, "replace"))


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


class FileEngine:
    """An engine whose weights are the bytes of one file."""

    rank, world_size = 0, 1

    def __init__(self, weights: bytes = b"fresh") -> None:
        self.weights = weights

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.pt").write_bytes(self.weights)

    def load(self, folder: Path) -> None:
        self.weights = (folder / "weights.pt").read_bytes()


class HalfSaved(FileEngine):
    """Dies with its file half written."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        os.truncate(folder / "weights.pt", 2)
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


def save(folder: Path, step: int, engine: FileEngine) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    save_checkpoint(folder, step, engine, {"epoch": step}, keep=1)


def save_and_die(folder: Path, passes: int) -> None:
    killer = Killer(passes)
    for owner, name in OPERATIONS:
        killer.watch(owner, name)
    save(folder, 2, FileEngine())


def main(root: Path) -> None:
    torch.set_num_threads(1)
    outcomes = {}
    steps = {1: root / "with-1", 2: root / "with-2"}
    for step, folder in steps.items():
        assert in_child(lambda folder=folder, step=step: save(folder, step, FileEngine())) == 0

    def newest_after(name: str, start: Path, work: Callable[[Path], None]) -> bool:
        """Whether `work` on a copy of the run was killed; notes what is left."""
        folder = root / name
        shutil.copytree(start, folder)
        ended = in_child(lambda: work(folder))
        assert ended in (0, -signal.SIGKILL), f"{name} ended with {ended}"
        whole = whole_checkpoints(folder)
        outcomes[name] = json.loads((whole[-1] / "manifest.json").read_text())["step"] if whole else None
        return ended != 0

    assert newest_after("half", steps[1], lambda folder: save(folder, 2, HalfSaved()))
    for prefix, start in (("first", steps[1]), ("again", steps[2])):
        passes = 0
        while newest_after(f"{prefix}-{passes}", start, lambda folder, n=passes: save_and_die(folder, n)):
            passes += 1
        assert passes > 2
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
