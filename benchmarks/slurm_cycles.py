"""A training on a real Slurm of two nodes, preempted again and again: same bits?

    # as root, with slurmctld, slurmd and munged installed
    python benchmarks/slurm_cycles.py DATA [--cycles 5]

DATA is a converted set. The Slurm is that of tests/slurm. A job of slurm/pretrain.sbatch is
preempted by an urgent job that wants both nodes, once it has made eight steps since its last start;
then it has to save, go back to the queue, resume. At the end its weights are compared with those of
a job that nobody disturbed. Writes results/slurm_cycles.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "slurm"))
from cluster import Cluster, why_not


ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "slurm_cycles.json"
SETTINGS = {
    "max_steps": 400,
    "evaluate_every": 1000,
    "model": {
        "channels": 4,
        "l_max": 1,
        "num_layers": 1,
        "readout_size": 8,
        "radial_hidden": 8,
        "cutoff": 4.0,
    },
    "stream": {"edge_budget": 1500, "window_blocks": 2},
    "optimizer": {"name": "adamw"},
    "schedule": {"warmup_steps": 5},
    "engine": {"zero_stage": 1},
    "checkpoints": {"every": 5},
}


class Job:
    def __init__(self, cluster: Cluster, work: Path, name: str) -> None:
        self.cluster = cluster
        self.out = work / name
        self.folder = work
        recipe = str(ROOT / "slurm" / "pretrain.sbatch")
        self.number = cluster.submit(
            "--chdir", str(work), recipe, "recipe.yaml", str(self.out), cwd=work
        )

    def step(self) -> int:
        """The last one in the metrics."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)

    def await_step(self, step: int) -> None:
        def there() -> bool:
            self.cluster.start_now(self.number)
            return self.step() >= step

        self.cluster.wait(there, 300, f"step {step}")

    def await_end(self) -> None:
        def there() -> bool:
            self.cluster.start_now(self.number)
            return self.cluster.state(self.number) in ("COMPLETED", "FAILED", "TIMEOUT")

        self.cluster.wait(there, 300, "end")

    def figures(self) -> tuple[bytes, list[tuple[int, float]]]:
        rows = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        weights = (self.out / "model" / "model.safetensors").read_bytes()
        return weights, [(row["step"], row["loss"]) for row in rows if row["event"] == "step"]


def cycle(cluster: Cluster, job: Job) -> dict[str, float]:
    """One preemption; seconds until the save, and until the first step after it."""
    saved = job.step()
    job.await_step(saved + 8)
    restarts = cluster.restarts(job.number)
    started = time.monotonic()
    cluster.submit(
        "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1", cwd=job.folder
    )
    cluster.wait(lambda: cluster.restarts(job.number) == restarts + 1, 120, "requeue")
    requeued = time.monotonic() - started
    at = job.step()
    job.await_step(at + 1)
    return {
        "stopped at step": at,
        "s to requeue": requeued,
        "s to the next step": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--cycles", type=int, default=5)
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"error: {reason}")
    slurm = tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)
    with slurm as folder, tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "recipe.yaml").write_text(
            json.dumps({"data": str(arguments.data.resolve()), **SETTINGS})
        )
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            job = Job(cluster, work, "disturbed")
            cycles = [cycle(cluster, job) for _ in range(arguments.cycles)]
            job.await_end()
            undisturbed = Job(cluster, work, "undisturbed")
            undisturbed.await_end()
            same = job.figures() == undisturbed.figures()
            state = cluster.state(job.number)
            restarts = cluster.restarts(job.number)
        finally:
            cluster.stop()
    result = {
        "command": f"python benchmarks/slurm_cycles.py DATA --cycles {arguments.cycles}",
        "date": time.strftime("%Y-%m-%d"),
        "state": state,
        "restarts": restarts,
        "weights and losses of an undisturbed job, bit for bit": same,
        "cycles": [{key: round(value, 1) for key, value in row.items()} for row in cycles],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
