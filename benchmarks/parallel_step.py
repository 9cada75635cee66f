"""One rank against two, one thread each: edges per second, what a step spends its time on, what a checkpoint costs.

    python benchmarks/parallel_step.py DATA [--steps 30] [--rounds 5]

DATA is a converted set; model, batches and ZeRO stage 0 are the defaults. Rounds alternate between one rank and two, so
that the machine's load falls on both; figures are medians over rounds. Parallel efficiency is the edges per second of
two ranks over twice those of one. Wall time shows a busy machine as well, processor time does not show waiting: both
are given. `outside` is what of a step's wall time is not forward, backward, reduction of gradients or optimizer: data,
loss, checks and metrics. Writes results/parallel_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from evenfield.pretrain.callbacks import Callback
from evenfield.pretrain.checkpoints import save_checkpoint, seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.engine import DeepSpeedEngine
from evenfield.pretrain.launch import start_distributed
from evenfield.pretrain.metrics import Metrics
from evenfield.pretrain.run import open_stream
from evenfield.pretrain.start import build_potential
from evenfield.pretrain.train import StepReport, Trainer


WARM_UP = 5
RESULT = Path(__file__).resolve().parent / "results" / "parallel_step.json"


class Timed:
    """An engine that adds up the seconds of its parts."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.seconds = {"forward": 0.0, "backward": 0.0, "step": 0.0}

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


class Clock(Callback):
    """Figures of the steps after the warm-up."""

    def __init__(self, engine: Timed) -> None:
        self.engine, self.edges, self.wall, self.cpu = engine, 0, 0.0, 0.0
        self._last = self._last_cpu = 0.0

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        if report.step == WARM_UP:
            self.engine.seconds = dict.fromkeys(self.engine.seconds, 0.0)
        elif report.step > WARM_UP:
            self.edges += report.edges
            self.wall += now - self._last
            self.cpu += cpu - self._last_cpu
        self._last, self._last_cpu = now, cpu


def work(folder: str, steps: int) -> dict[str, Any] | None:
    """One rank's part of a round; rank 0 returns the figures."""
    torch.set_num_threads(1)
    start_distributed()
    config = PretrainConfig(data=folder, out="none", max_steps=steps + WARM_UP)
    data = config.open_data()
    seed_everything(0)
    potential = build_potential(config, data)
    engine = Timed(DeepSpeedEngine(potential, config.engine))
    stream = open_stream(config, data, engine)
    clock = Clock(engine)
    with tempfile.TemporaryDirectory() as name:
        metrics = [Metrics(Path(name) / "metrics.jsonl", 0)] if engine.rank == 0 else []
        trainer = Trainer(engine, stream, config.loss, config.engine, config.max_steps, [*metrics, clock])
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
        "save_s": statistics.median(saved),
        "parameters": sum(p.numel() for p in potential.parameters()),
    }


def round_of(ranks: int, folder: str, steps: int) -> dict[str, Any]:
    """Start the ranks and wait for the figures of rank 0."""
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "result.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*launch, __file__, folder, "--steps", str(steps), "--worker", str(result)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(result.read_text())


def summary(rounds: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and efficiencies of the rounds in pairs."""
    result: dict[str, Any] = {}
    for ranks, rows in rounds.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        steps = middle.pop("edges"), middle.pop("wall_s"), middle.pop("cpu_s")
        middle |= {"edges_per_s": steps[0] / steps[1], "edges_per_cpu_s": steps[0] / steps[2]}
        result[f"{ranks} rank" + "s" * (ranks > 1)] = {key: round(value, 4) for key, value in middle.items()}
    for kind in ("wall_s", "cpu_s"):
        ratios = []
        for one, two in zip(rounds[1], rounds[2], strict=True):
            ratio = (two["edges"] / two[kind]) / (one["edges"] / one[kind])
            ratios.append(ratio / 2 if kind == "wall_s" else ratio)
        result[f"efficiency by {kind[:-2]} time"] = [round(value, 3) for value in (statistics.median(ratios), *ratios)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    rounds: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for ranks in rounds:
            rounds[ranks].append(round_of(ranks, arguments.data, arguments.steps))
    result = {
        "command": f"python benchmarks/parallel_step.py DATA --steps {arguments.steps} --rounds {arguments.rounds}",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load of the machine at the end": os.getloadavg()[1],
        **summary(rounds),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
