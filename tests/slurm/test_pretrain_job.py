"""slurm/pretrain.sbatch on two nodes of a real Slurm: preempted, a rank killed, cancelled."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "slurm" / "pretrain.sbatch"
MODEL = {
    "channels": 4,
    "l_max": 1,
    "num_layers": 1,
    "readout_size": 8,
    "radial_hidden": 8,
    "cutoff": 4.0,
}
STEPS = 60


@pytest.fixture(scope="module")
def work(data_set, tmp_path_factory) -> Path:
    """A recipe of so many steps, saved every fifth, and slow enough to be hit."""
    folder = tmp_path_factory.mktemp("work")
    settings = {
        "data": str(data_set),
        "max_steps": STEPS,
        "evaluate_every": 1000,
        "model": MODEL,
        "stream": {"edge_budget": 1500, "window_blocks": 2},
        "optimizer": {"name": "adamw"},
        "schedule": {"warmup_steps": 5},
        "engine": {"zero_stage": 1},
        "checkpoints": {"every": 5},
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return folder


class Job:
    """A submitted training."""

    def __init__(self, cluster, work: Path, name: str, *words: str, restarts: int = 20) -> None:
        self.cluster, self.out = cluster, work / name
        options = [
            "--chdir",
            str(work),
            f"--job-name={name}",
            f"--export=ALL,MAX_RESTARTS={restarts}",
            *words,
        ]
        self.number = cluster.submit(*options, str(RECIPE), "recipe.yaml", str(self.out), cwd=work)
        self.log = work / f"{name}-{self.number}.out"

    def steps(self) -> list[int]:
        return [row["step"] for row in self.rows()]

    def rows(self) -> list[dict]:
        """The finished lines of metrics.jsonl; the job may be writing the last one."""
        path = self.out / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def await_step(self, step: int) -> None:
        def there() -> bool:
            self.cluster.start_now(self.number)
            return max(self.steps(), default=0) >= step

        self.cluster.wait(there, 180, f"step {step}\n{self.text()}")

    def await_state(self, *states: str, seconds: float = 240) -> str:
        def there() -> bool:
            state = self.cluster.state(self.number)
            if state == "PENDING" and "COMPLETED" in states:
                self.cluster.start_now(self.number)
            return state in states

        self.cluster.wait(there, seconds, f"{states}\n{self.text()}")
        return self.cluster.state(self.number)

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def weights(self) -> dict:
        return load_file(self.out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(cluster, work) -> Job:
    """Two nodes, one rank each, to the end."""
    job = Job(cluster, work, "undisturbed")
    assert job.await_state("COMPLETED", "FAILED", "TIMEOUT") == "COMPLETED", job.text()
    return job


def has_the_bits_of(job: Job, undisturbed: Job) -> bool:
    """The same weights, and one row for every step with the same loss."""
    losses = [(row["step"], row["loss"]) for row in job.rows()]
    expected = [(row["step"], row["loss"]) for row in undisturbed.rows()]
    if losses != expected:
        return False

    weights = job.weights()
    return all(weights[name].equal(tensor) for name, tensor in undisturbed.weights().items())


def test_job_on_two_nodes_ends(undisturbed):
    assert "start 0 on n[1-2], newest checkpoint: none" in undisturbed.text()
    assert undisturbed.steps() == list(range(1, STEPS + 1))
    checkpoint = undisturbed.out / "checkpoints" / f"step-{STEPS:08d}"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["world_size"] == 2


def test_job_outlives_a_killed_rank_and_a_preemption_and_ends_with_the_same_bits(
    cluster, work, undisturbed
):
    """SIGKILL for one rank ends both; later an urgent job takes the nodes. It resumes twice."""
    job = Job(cluster, work, "disturbed")
    job.await_step(12)
    os.kill(rank_of(job, 1), signal.SIGKILL)
    cluster.wait(lambda: cluster.restarts(job.number) == 1, 90, f"a requeue\n{job.text()}")
    assert "not finished (exit code" in job.text()

    job.await_step(25)
    held = rank_of(job, 1)
    # stopped, or a fast machine ends the job before Slurm looks at its queue
    os.kill(held, signal.SIGSTOP)
    urgent = cluster.submit("--partition=high", "--nodes=2", "--wrap=sleep 1", cwd=work)
    cluster.wait(lambda: cluster.is_preempted(job.number), 60, "the preemption")
    os.kill(held, signal.SIGCONT)
    assert job.await_state("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED") == "COMPLETED", job.text()
    assert cluster.state(urgent) == "COMPLETED"
    assert cluster.restarts(job.number) == 2

    text = job.text()
    # this line is of the preemption: the killed rank left another exit code
    assert "not finished (exit code 0): back to the queue" in text
    saved = int(re.search(r"stopped at step (\d+) by SIG", text)[1])
    assert f"start 2 on n[1-2], newest checkpoint: step-{saved:08d}" in text
    assert has_the_bits_of(job, undisturbed)


def rank_of(job: Job, rank: int) -> int:
    """The process id of a rank, read off /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            # the process has ended since it was listed
            continue
        is_of_job = f"SLURM_JOB_ID={job.number}".encode() in environment
        is_of_rank = f"SLURM_PROCID={rank}".encode() in environment
        # srun and its shells carry the same variables
        is_training = b"pretrain" in words and words[0].endswith(b"python")
        if is_of_job and is_of_rank and is_training:
            return int(folder.name)
    raise LookupError(f"no rank {rank} of job {job.number}")


def test_signal_while_the_ranks_start_is_not_lost(cluster, work):
    """Sent as soon as the script runs, seconds before Python listens."""
    job = Job(cluster, work, "early", restarts=0)
    cluster.wait(lambda: "start 0" in job.text(), 60, "the script's start")
    time.sleep(1)
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    assert job.await_state("COMPLETED", "FAILED") == "FAILED"
    assert re.search(r"stopped at step \d by SIGUSR1, saved", job.text()), job.text()
    assert "not finished after 0 restarts: submit again to go on" in job.text()
    assert len(job.steps()) < 10


def test_cancelled_job_saves_and_does_not_come_back(cluster, work):
    job = Job(cluster, work, "cancelled")
    job.await_step(6)
    cluster.run("scancel", job.number)
    job.await_state("CANCELLED")
    cluster.wait(lambda: "stopped at step" in job.text(), 60, "the save")

    # nothing announces that a job does not come back: it gets two seconds to do so
    time.sleep(2)
    assert cluster.state(job.number) == "CANCELLED"
    assert cluster.restarts(job.number) == 0


def test_job_that_fails_at_once_is_not_tried_again(cluster, work):
    (work / "recipe-of-nothing.yaml").write_text("data: /nowhere\n")
    options = [
        "--chdir",
        str(work),
        "--job-name=hopeless",
        "--nodes=1",
        str(RECIPE),
        "recipe-of-nothing.yaml",
    ]
    number = cluster.submit(*options, str(work / "none"), cwd=work)
    cluster.wait(lambda: cluster.state(number) == "FAILED", 120, "failure")
    text = (work / f"hopeless-{number}.out").read_text()
    assert "failed without a new checkpoint: not tried again" in text
    assert "/nowhere" in text
