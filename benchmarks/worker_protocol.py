"""What both sides of the comparison share: loss, clock and line protocol.

This file runs in the virtual environment of either side, so it imports nothing but torch and numpy.

A worker prints one JSON object on a line when it is ready, its facts, and then answers each line on
stdin with another; whatever else a library prints is not a JSON object and is passed over.

======================  =======================================================
line in                 line out
======================  =======================================================
``{"train": k}``        seconds of k training steps, and the last loss
``{"infer": k}``        seconds of k calls for energy and forces
``{"stop": 0}``         peak resident memory in MiB; then the worker ends
======================  =======================================================
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch


LEARNING_RATE = 1e-4
Forward = Callable[
    [], tuple[torch.Tensor, torch.Tensor]
]  # energy (S,) in eV, forces (N, 3) in eV/A


class Labels:
    """Target energy (S,) in eV and forces (N, 3) in eV/A of a batch of ase structures."""

    def __init__(self, structures: list[Any]) -> None:
        self.energy = torch.tensor(
            [a.get_potential_energy() for a in structures], dtype=torch.float32
        )
        self.forces = torch.tensor(
            np.concatenate([a.get_forces() for a in structures]), dtype=torch.float32
        )
        self.num_atoms = torch.tensor([len(a) for a in structures], dtype=torch.float32)

    def loss(self, energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
        """Mean square of the energy error per atom plus ten times that of the forces."""
        per_atom = (energy - self.energy) / self.num_atoms
        return per_atom.square().mean() + 10.0 * (forces - self.forces).square().mean()


class Trainer:
    """Forward, loss, backward and step on one prebuilt batch."""

    def __init__(self, optimizer: torch.optim.Optimizer, forward: Forward, labels: Labels) -> None:
        self.optimizer = optimizer
        self.forward = forward
        self.labels = labels

    def step(self) -> torch.Tensor:
        """One training step; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.labels.loss(*self.forward())
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def parse_arguments() -> argparse.Namespace:
    """The options that the harness passes to either worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--structures", required=True, help="extxyz with energy and forces")
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--hidden-l", type=int, required=True)
    parser.add_argument("--l-max", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--cutoff", type=float, required=True, help="A")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--mode", choices=("eager", "compile"), required=True)
    return parser.parse_args()


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks on both sides: saves ours a quarter of a step, MACE a fifth."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Processor seconds of a call, the mean of so many."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def facts(packages: list[str], **more: Any) -> dict[str, Any]:
    """Versions of Python and packages, threads, and what the worker adds."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        **more,
    }


def serve(ready: dict[str, Any], trainer: Trainer, infer: Forward) -> None:
    """Print the facts, then run what each line on stdin asks for until told to stop."""
    keep_freed_memory()
    # one thread is charged for what it does itself, whatever else the machine is doing
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    calls: dict[str, Callable[[], Any]] = {"train": trainer.step, "infer": infer}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        ((name, count),) = json.loads(line).items()
        if name == "stop":
            kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"peak_resident_mib": kib / 1024}), flush=True)
            return
        start = clock()
        for _ in range(count):
            result = calls[name]()
        seconds = clock() - start
        answer = (
            {"seconds": seconds, "loss": float(result)} if name == "train" else {"seconds": seconds}
        )
        print(json.dumps(answer), flush=True)
