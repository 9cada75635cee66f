"""The harness's end of a worker: start it, warm it up, ask for turns."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
KINDS = ("train", "infer")
WARM_UP = 4  # calls; TorchScript settles after three


class Worker:
    """One side: a process that trains or infers when it is asked and is idle otherwise."""

    def __init__(
        self, name: str, python: str, mode: str, structures: Path, options: argparse.Namespace
    ) -> None:
        sizes = {
            n: getattr(options, n)
            for n in ("channels", "hidden_l", "l_max", "layers", "cutoff", "threads")
        }
        command = [
            python,
            str(HERE / f"{name}_worker.py"),
            "--structures",
            str(structures),
            "--mode",
            mode,
        ]
        for key, value in sizes.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        )
        self.facts = self.answer()
        self.counts = {kind: self.calibrate(kind, options.turn_seconds) for kind in options.kinds}

    def answer(self) -> dict[str, Any]:
        """The next JSON object of the worker; RuntimeError with its last words if it has died."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise RuntimeError(f"the {self.name} worker ended:\n{self.errors.read()[-2000:]}")

    def ask(self, kind: str, count: int) -> dict[str, Any]:
        """Have `count` calls made; returns the worker's answer."""
        self.process.stdin.write(json.dumps({kind: count}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def calibrate(self, kind: str, turn_seconds: float) -> int:
        """Warm up; returns the number of calls that fill a turn, at least 2."""
        self.ask(kind, WARM_UP)
        return max(2, round(turn_seconds / (self.ask(kind, 2)["seconds"] / 2)))

    def turn(self, kind: str) -> float:
        """Seconds per call in one turn."""
        return self.ask(kind, self.counts[kind])["seconds"] / self.counts[kind]
