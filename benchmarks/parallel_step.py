"""One rank and two, one thread each: speed, the parts of a step, and a checkpoint.

    python benchmarks/parallel_step.py DATA [--steps 30] [--rounds 5]

DATA is a converted set; model, batches and ZeRO stage 0 are the defaults. Rounds alternate between
one rank, two, and two runs of one rank at once that know nothing of each other: what the machine
can give; so its load falls on all. Figures are medians over rounds. Parallel efficiency is the
edges per second of two ranks over twice those of one. Wall time shows a busy machine as well,
processor time does not show waiting: both are given. `outside` is what of a step's wall time is not
forward, backward, reduction of gradients or optimizer: data, loss, checks and metrics, and
`agreeing`, the check of gradients and the wait for the slower rank. Writes
results/parallel_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from evenfield.core.ranks import start_distributed
from evenfield.pretrain.callbacks.callback import Callback, Loop, StepReport
from evenfield.pretrain.callbacks.metrics import Metrics
from evenfield.pretrain.checkpoints.checkpoints import save_checkpoint, seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.engine import DeepSpeedEngine
from evenfield.pretrain.loop.schedule import Schedule
from evenfield.pretrain.loop.train_module import TrainModule
from evenfield.pretrain.loop.trainer import Trainer
from evenfield.pretrain.streams import open_stream


WARM_UP = 5
RESULT = Path(__file__).resolve().parent / "results" / "parallel_step.json"


class Timed:
    """An engine that adds up the seconds of its parts."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.seconds = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        self.agreeing = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.engine, name)
        if name not in self.seconds:
            return value

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            outcome = value(*arguments)
            self.seconds[name] += time.perf_counter() - started
            return outcome

        return timed


class TimedTrainer(Trainer):
    """Adds up the seconds in which the ranks agree that a step is sound."""

    def _over_all_ranks(self, losses: list[torch.Tensor]) -> tuple[bool, float]:
        started = time.perf_counter()
        outcome = super()._over_all_ranks(losses)
        self.engine.agreeing += time.perf_counter() - started
        return outcome


class Clock(Callback):
    """Figures of the steps after the warm-up."""

    def __init__(self, engine: Timed) -> None:
        self.engine = engine
        self.edges = 0
        self.wall = 0.0
        self.cpu = 0.0
        self._last = self._last_cpu = 0.0

    def on_step(self, loop: Loop, report: StepReport) -> None:
        now = time.perf_counter()
        cpu = time.process_time()
        if report.step == WARM_UP:
            self.engine.seconds = dict.fromkeys(self.engine.seconds, 0.0)
            self.engine.agreeing = 0.0
        elif report.step > WARM_UP:
            self.edges += report.edges
            self.wall += now - self._last
            self.cpu += cpu - self._last_cpu
        self._last = now
        self._last_cpu = cpu


def work(folder: str, steps: int) -> dict[str, Any] | None:
    """One rank's part of a round; rank 0 returns the figures."""
    torch.set_num_threads(1)
    start_distributed()
    config = PretrainConfig(data=folder, out="none", max_steps=steps + WARM_UP)
    data = config.open_data()
    seed_everything(0)
    potential = build_potential(config, data)
    train_module = TrainModule(potential, config.loss)
    engine = Timed(DeepSpeedEngine(train_module, config.optimizer, config.engine))
    stream = open_stream(
        config, data, potential.config.levels_of_theory, engine.rank, engine.world_size
    )
    clock = Clock(engine)
    with tempfile.TemporaryDirectory() as name:
        metrics = [Metrics(Path(name) / "metrics.jsonl", 0)] if engine.rank == 0 else []
        schedule = Schedule(config.optimizer.learning_rate, config.schedule)
        trainer = TimedTrainer(engine, stream, schedule, config.max_steps, [*metrics, clock])
        trainer.fit()
        saved = []
        for step in range(3):
            started = time.perf_counter()
            save_checkpoint(Path(name), step, engine, trainer.state(), keep=2)
            saved.append(time.perf_counter() - started)
    cpu = torch.tensor([clock.cpu])
    dist.all_reduce(cpu)
    if engine.rank:
        return None
    outside = clock.wall - sum(engine.seconds.values())
    return {
        "edges": clock.edges,
        "wall_s": clock.wall,
        "cpu_s": float(cpu),
        "share_forward": engine.seconds["forward"] / clock.wall,
        "share_backward": engine.seconds["backward"] / clock.wall,
        "share_reduce_clip_update": engine.seconds["step"] / clock.wall,
        "share_outside": outside / clock.wall,
        "share_agreeing": engine.agreeing / clock.wall,
        "save_s": statistics.median(saved),
        "parameters": sum(p.numel() for p in potential.parameters()),
    }


def start(ranks: int, folder: str, steps: int, result: Path) -> list[subprocess.Popen[bytes]]:
    """Start the ranks of one run; rank 0 writes its figures to `result`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, folder, "--steps", str(steps), "--worker", str(result)]
    every = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(ranks),
    }
    every |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [every | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    quiet = subprocess.DEVNULL
    return [
        subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
        for environment in own
    ]


def round_of(runs: list[int], folder: str, steps: int) -> list[dict[str, Any]]:
    """Runs of so many ranks each, all at once; their figures."""
    with tempfile.TemporaryDirectory() as name:
        results = [Path(name) / f"{number}.json" for number in range(len(runs))]
        started = [
            start(ranks, folder, steps, result) for ranks, result in zip(runs, results, strict=True)
        ]
        codes = [process.wait() for processes in started for process in processes]
        if any(codes):
            raise RuntimeError("a rank failed: run it with --worker by hand to see why")
        return [json.loads(result.read_text()) for result in results]


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and the efficiency of each round: edges per second over twice those of one rank."""
    result: dict[str, Any] = {}
    for name, rows in rounds.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        steps = middle.pop("edges"), middle.pop("wall_s"), middle.pop("cpu_s")
        middle |= {"edges_per_s": steps[0] / steps[1], "edges_per_cpu_s": steps[0] / steps[2]}
        result[name] = {key: round(value, 4) for key, value in middle.items()}
    for kind in ("wall_s", "cpu_s"):
        for name in ("2 ranks", "2 runs of 1 rank"):
            # a run of two ranks counts the edges and the processor seconds of both
            share = 0.5 if (name, kind) == ("2 ranks", "wall_s") else 1.0
            pairs = zip(rounds["1 rank"], rounds[name], strict=True)
            ratios = [
                share * (two["edges"] / two[kind]) / (one["edges"] / one[kind])
                for one, two in pairs
            ]
            values = [round(value, 3) for value in (statistics.median(ratios), *ratios)]
            result[f"efficiency of {name} by {kind[:-2]} time"] = values
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        figures = work(arguments.data, arguments.steps)
        if figures:
            arguments.worker.write_text(json.dumps(figures))
        return
    rounds: dict[str, list[dict[str, Any]]] = {"1 rank": [], "2 ranks": [], "2 runs of 1 rank": []}
    for _ in range(arguments.rounds):
        for name, runs in zip(rounds, ([1], [2], [1, 1]), strict=True):
            figures = round_of(runs, arguments.data, arguments.steps)
            middle = {key: statistics.mean(own[key] for own in figures) for key in figures[0]}
            rounds[name].append(middle)
    result = {
        "command": f"python benchmarks/parallel_step.py DATA --steps {arguments.steps} "
        f"--rounds {arguments.rounds}",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load of the machine at the end": os.getloadavg()[1],
        **summary(rounds),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
