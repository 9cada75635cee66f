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
    missing = [
        name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None
    ]
    return (
        f"Slurm is not installed: no {', '.join(missing)} (Debian: slurm-wlm, munge)"
        if missing
        else ""
    )


class Cluster:
    """Start it, use it, stop it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            # as if the environment were activated, which `make test` does not do
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{SBIN}",
        }
        for name in [
            name
            for name in self.environment
            if name.startswith(("SLURM_JOB", "RANK", "WORLD_SIZE"))
        ]:
            del self.environment[name]

    def start(self) -> None:
        """Bring up the daemons; raises with their logs when the nodes do not come."""
        folder, ports = self.folder, _free_ports(3)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
        flags = [
            f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in munge.items()
        ]
        self.run("munged", "--force", f"--key-file={key}", *flags)
        host = socket.gethostname().partition(".")[0]
        config = CONFIG.format(
            host=host, folder=folder, port=ports[0], first=ports[1], last=ports[1] + 1
        )
        (folder / "slurm.conf").write_text(config)
        self.run("slurmctld")
        for node in ("n1", "n2"):
            (folder / f"spool.{node}").mkdir()
            self.run("slurmd", "-N", node)
        self.wait(
            lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split().count("idle") >= 4,
            60,
            "idle nodes",
        )

    def stop(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(
            ["scancel", "--signal=KILL", "--full", "--user=root"], env=self.environment, check=False
        )
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
        lines = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in lines if word.startswith("JobState="))

    def restarts(self, job: str) -> int:
        """How often it went back to the queue."""
        lines = self.run("scontrol", "show", "job", job).split()
        return int(next(word.partition("=")[2] for word in lines if word.startswith("Restarts=")))

    def is_preempted(self, job: str) -> bool:
        """Whether Slurm has asked it to make room."""
        return "PreemptTime=None" not in self.run("scontrol", "show", "job", job)

    def start_now(self, job: str) -> None:
        """A requeued job waits two minutes by default; not this one."""
        words = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        subprocess.run(words, env=self.environment, capture_output=True, check=False)

    def wait(self, condition, seconds: float, what: str) -> None:
        """Until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{what}: not within {seconds:.0f} s\n{self.run('squeue')}\n{self.logs()}"
                )
            time.sleep(0.3)

    def logs(self) -> str:
        """The last lines of all daemons."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"{path.name}: {line}" for path in paths for line in path.read_text().splitlines()[-8:]
        )


def _end(pid: int) -> None:
    """SIGTERM, then wait: a daemon writes its state before it goes."""
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    """So many free ports in a row."""
    for first in range(17001 + os.getpid() % 1000, 30000, 10):
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(range(first, first + number))
    raise RuntimeError("no free ports")
