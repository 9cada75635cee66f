"""A real Slurm of two nodes on this machine: munged, slurmctld, two slurmd, all in one folder.

Nodes n1 and n2 have one processor each and the machine's address, so no name has to resolve and no
system file is touched. A job in partition high preempts those in partition low, which get SIGTERM
and some seconds, and are requeued.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
SBIN = "/usr/sbin:/sbin"
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MpiDefault=none
KillWait=20
MessageTimeout=60
SlurmctldTimeout=120
SlurmdTimeout=120
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 \
Boards=1 SocketsPerBoard=1 \
CoresPerSocket=1 ThreadsPerCore=1 RealMemory=2000
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why a Slurm cannot be brought up here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root: munged and slurmd run as it"

    # the daemons are in folders that the PATH of a user often leaves out
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm is not installed: no {', '.join(missing)} (Debian: slurm-wlm, munge)"
    return ""


class Cluster:
    """Start it, use it, stop it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            # as if the environment were activated, which `make test` does not do
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{SBIN}",
        }
        # The tests may themselves run in a job, whose variables a new job would inherit.
        for name in list(self.environment):
            if name.startswith(("SLURM_JOB", "RANK", "WORLD_SIZE")):
                del self.environment[name]

    def start(self) -> None:
        """Bring up the daemons; raises with their logs when the nodes do not come."""
        # munged refuses a socket in a folder that others may not enter
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        self._start_munge()
        self._write_config()

        self.run("slurmctld")
        for node in ("n1", "n2"):
            (self.folder / f"spool.{node}").mkdir()
            self.run("slurmd", "-N", node)

        def all_idle() -> bool:
            states = self.run("sinfo", "-h", "-N", "-o", "%T").split()
            # each of the two nodes is listed once for each of the two partitions
            return states.count("idle") >= 4

        self.wait(all_idle, 60, "idle nodes")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        # munged refuses a key that others can read
        key.chmod(0o400)
        self.run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munge.pid",
            f"--log-file={self.folder}/munge.log",
            f"--seed-file={self.folder}/munge.seed",
        )

    def _write_config(self) -> None:
        controller, first_node, second_node = _free_ports(3)
        config = CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            folder=self.folder,
            port=controller,
            first=first_node,
            last=second_node,
        )
        (self.folder / "slurm.conf").write_text(config)

    def stop(self) -> None:
        """End all jobs and daemons."""
        end_jobs = ["scancel", "--signal=KILL", "--full", "--user=root"]
        subprocess.run(end_jobs, env=self.environment, check=False)
        # the nodes need a moment to carry it out, before they are stopped themselves
        time.sleep(0.5)
        for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge.pid"):
            path = self.folder / name
            if path.is_file():
                _end(int(path.read_text()))

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command of Slurm; returns what it prints."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout

    def submit(self, *words: str, cwd: Path) -> str:
        """sbatch; returns the job's number."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).strip()

    def state(self, job: str) -> str:
        """JobState, such as RUNNING."""
        return self.fields(job, "JobState")[0]

    def restarts(self, job: str) -> int:
        """How often it went back to the queue."""
        return int(self.fields(job, "Restarts")[0])

    def is_preempted(self, job: str) -> bool:
        """Whether Slurm has asked it to make room."""
        return "None" not in self.fields(job, "PreemptTime")

    def fields(self, job: str, key: str) -> list[str]:
        """The values of a key of `scontrol show job`, one for each task of an array."""
        words = self.run("scontrol", "show", "job", job).split()
        values = []
        for word in words:
            name, _, value = word.partition("=")
            if name == key:
                values.append(value)
        return values

    def start_now(self, job: str) -> None:
        """A requeued job waits two minutes by default; not this one."""
        words = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        subprocess.run(words, env=self.environment, capture_output=True, check=False)

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                queue = self.run("squeue")
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{queue}\n{self.logs()}")
            # each look is a process, and there are two cores for all of them
            time.sleep(0.3)

    def logs(self) -> str:
        """The last lines of all daemons."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            for line in path.read_text().splitlines()[-8:]:
                found.append(f"{path.name}: {line}")
        return "\n".join(found)


def _end(pid: int) -> None:
    """SIGTERM, then wait: a daemon writes its state before it goes."""
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    """So many free ports in a row."""
    # two runs of the tests at a time start their search at different ports
    for first in range(17001 + os.getpid() % 1000, 30000, 10):
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + number))
    raise RuntimeError("no free ports")
