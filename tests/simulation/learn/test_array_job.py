"""Labels by a job array: a stand-in for Slurm runs the tasks, and the loop is killed meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from fake_slurm import install

from evenfield.core.settings import SettingsError
from evenfield.simulation.learn import array_job
from evenfield.simulation.learn.array_job import check_options
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.labelling import LabellingError, labels_of


class Killed(BaseException):
    """Ends the loop like a signal that nobody handles."""


class Cluster:
    """What a user sees of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.queue = install(folder) / "queue"

    @property
    def jobs(self) -> list[str]:
        """Names and tasks of all jobs that were ever submitted."""
        jobs = self.queue / "jobs"
        return jobs.read_text().splitlines() if jobs.exists() else []

    def hold(self) -> None:
        """No task starts."""
        (self.queue / "held").touch()

    def release(self) -> None:
        """They start."""
        (self.queue / "held").unlink()

    def cancel(self) -> None:
        """The newest job is taken out of the queue."""
        subprocess.run(["scancel", f"--name={self.jobs[-1].split()[0]}"], check=True)

    def wait_until_empty(self) -> None:
        """Until nothing waits or runs."""
        end = time.monotonic() + 60
        while list(self.queue.glob("*.task")):
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """On the PATH, and quicker than a real one."""
    own = Cluster(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(tmp_path / "slurm"), prepend=os.pathsep)
    monkeypatch.setattr(array_job, "PATIENCE", 0.02)
    monkeypatch.setattr(array_job, "QUEUE_PATIENCE", 0.1)
    monkeypatch.setattr(array_job, "GRACE", 0.3)
    yield own
    (own.queue / "held").unlink(missing_ok=True)
    for task in own.queue.glob("*.task"):
        task.unlink()


@pytest.fixture
def frames() -> list[Atoms]:
    made = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        made.append(atoms)
    return made


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def asking(log: Path, timeout: float = 60.0, **faults: str) -> LearnConfig:
    """Settings with the oracle whose faults are given as t0="nan" for the first time."""
    return LearnConfig(
        oracle="odd_oracle:OddOracle",
        oracle_settings={
            "log": str(log),
            "faults": {name.removeprefix("t"): fault for name, fault in faults.items()},
        },
        timeout=timeout,
        slurm=["--partition=cpu", "--time=04:00:00"],
    )


def times_asked(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_each_label_is_a_task(
    cluster: Cluster, frames: list[Atoms], log: Path, tmp_path: Path
) -> None:
    """One that ends its process and one that takes too long are failures, and are not repeated."""
    folder = tmp_path / "100%a" / "labels"
    config = asking(log, 4.0, t0="die", t2="hang")
    labels = labels_of(folder, frames, config)
    assert labels[0].failure == "oracle_ended"
    assert labels[0].detail == "exit code 3: it said nothing"
    assert (labels[2].failure, labels[2].detail) == ("time-out", "no label after 4 s")
    # bit for bit what the calculator says of what was asked
    atoms = frames[1].copy()
    atoms.calc = EMT()
    assert labels[1].failure is None
    assert labels[1].results["energy"] == atoms.get_potential_energy()
    assert np.array_equal(labels[1].results["forces"], atoms.get_forces())
    assert [job.split()[1] for job in cluster.jobs] == ["0,1,2"]
    script = (folder / "labels.sbatch").read_text()
    assert "#SBATCH --partition=cpu\n#SBATCH --time=04:00:00\n" in script

    # once more: all answers are there
    again = labels_of(folder, frames, config)
    assert [label.failure for label in again] == [label.failure for label in labels]
    assert times_asked(log) == 3 and len(cluster.jobs) == 1


def test_a_loop_that_was_killed_finds_its_job(
    cluster: Cluster,
    frames: list[Atoms],
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right after it was submitted, while it waits, while a task runs, and when all have ended."""
    folder = tmp_path / "000" / "labels"
    config = asking(log, t0="slow")
    cluster.hold()
    whole = subprocess.run

    def killed_after_sbatch(words: list[str], **how: object) -> object:
        done = whole(words, **how)
        if words[0] == "sbatch":
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(array_job.subprocess, "run", killed_after_sbatch)
        with pytest.raises(Killed):
            labels_of(folder, frames, config)

    looks = 0

    def kill_at(moment: Callable[[], bool]) -> None:
        def maybe(_: object) -> None:
            nonlocal looks
            looks += 1
            # each time has seen the queue at least once
            if looks > 2 and moment():
                raise Killed

        nonlocal looks
        looks = 0
        with monkeypatch.context() as patch:
            patch.setattr(array_job, "_sleep", maybe)
            with pytest.raises(Killed):
                labels_of(folder, frames, config)

    kill_at(lambda: True)
    # a controller that does not answer for a while is no end of a job
    (cluster.queue / "down").touch()
    kill_at(lambda: looks > 5)
    (cluster.queue / "down").unlink()
    cluster.release()
    kill_at(lambda: times_asked(log) == 1)
    cluster.wait_until_empty()
    labels = labels_of(folder, frames, config)
    assert [label.failure for label in labels] == [None] * 3
    assert times_asked(log) == 3 and len(cluster.jobs) == 1


def test_a_job_that_is_cancelled(
    cluster: Cluster,
    frames: list[Atoms],
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was begun is a failure; the rest is submitted by the next call, or labelled here."""
    folder = tmp_path / "000" / "labels"
    config = asking(log, t0="hang")
    whole = array_job._sleep
    cancelled = []

    def cancel(places: list[Path]) -> None:
        if times_asked(log) == 1 and not cancelled:
            cancelled.append(True)
            cluster.cancel()
        whole(places)

    with monkeypatch.context() as patch:
        patch.setattr(array_job, "_sleep", cancel)
        with pytest.raises(LabellingError, match=r"without 2 of its labels.*was cancelled") as told:
            labels_of(folder, frames, config)
    assert "submitted again" in told.value.remedy
    cluster.wait_until_empty()

    # submitted again, and cancelled before anything was begun
    cluster.hold()
    cancelled.append(True)
    with monkeypatch.context() as patch:
        patch.setattr(array_job, "_sleep", lambda places: (cluster.cancel(), whole(places)))
        with pytest.raises(LabellingError, match="without 2 of its labels"):
            labels_of(folder, frames, config)
    assert [job.split()[1] for job in cluster.jobs] == ["0,1,2", "1,2"]
    assert times_asked(log) == 1

    here = config.model_copy(update={"slurm": None})
    labels = labels_of(folder, frames, here)
    assert labels[0].failure == "oracle_ended" and "CANCELLED" in labels[0].detail
    assert [label.failure for label in labels[1:]] == [None, None]
    assert times_asked(log) == 3 and len(cluster.jobs) == 2


def test_a_task_that_cannot_write_is_no_fault_of_a_structure(
    cluster: Cluster, frames: list[Atoms], log: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "000" / "labels"
    config = asking(log)
    # the script starts the labeller through it, with the folder and the number as last words
    (tmp_path / "slurm" / "timeout").write_text(
        '#!/bin/bash\ndate +%s.0 > "$6/000/asked"; echo "No space left on device"; exit 74\n'
    )
    (tmp_path / "slurm" / "timeout").chmod(0o755)
    with pytest.raises(LabellingError, match="No space left on device"):
        labels_of(folder, frames[:1], config)
    (tmp_path / "slurm" / "timeout").unlink()
    labels = labels_of(folder, frames[:1], config)
    assert labels[0].failure is None and len(cluster.jobs) == 2


def test_what_cannot_be_submitted_is_refused(
    cluster: Cluster,
    frames: list[Atoms],
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "000" / "labels"
    config = asking(log).model_copy(update={"slurm": ["--partition=none"]})
    with pytest.raises(LabellingError, match="invalid partition specified: none"):
        labels_of(folder, frames, config)
    check_options(["-p cpu", "--mem-per-cpu=4G", "-A me"])
    for option in ("--array=0-3", "-a 0-3", "-Jmine", "--output=x", "cpu", "--a\nrm", "--wrap=x"):
        with pytest.raises(SettingsError, match="slurm: "):
            check_options([option])
    # the second letter of a word is no short option
    with pytest.raises(SettingsError, match="'partition=cpu' is no option of sbatch"):
        check_options(["partition=cpu"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="no sbatch and no squeue on the PATH"):
        check_options([])
