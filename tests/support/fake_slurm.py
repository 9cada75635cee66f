"""A stand-in for a small part of Slurm: `sbatch`, `squeue` and `scancel` for job arrays.

One machine, one task at a time, in the order of their numbers. A folder holds the queue: a file for
each task that waits or runs, with the name of its job and its number. Options are those that the
package uses, and others are refused, as Slurm refuses what it does not know.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


KNOWN = ("--partition=", "--ntasks=", "--requeue", "--open-mode=append", "--time=", "--qos=")
# squeue is asked often, and a shell starts faster than Python
SQUEUE = """#!/bin/bash
[ -e {queue}/down ] && echo "slurm_load_jobs error: Unable to contact controller" >&2 && exit 1
[ "$1 $2 $4" = "--noheader --array --format=%K" ] || exit 2
for task in {queue}/*.task; do
    [ -e "$task" ] && read -r name index < "$task" && [ "--name=$name" = "$3" ] && echo "$index"
done
exit 0
"""


def install(folder: Path) -> Path:
    """Put the programs into a folder, for the PATH; the queue is a folder in it."""
    queue = folder / "queue"
    queue.mkdir(parents=True)
    scripts = {"squeue": SQUEUE.format(queue=queue)}
    for name in ("sbatch", "scancel"):
        words = f'exec {sys.executable} {Path(__file__).resolve()} {name} {queue} "$@"'
        scripts[name] = f"#!/bin/bash\n{words}\n"
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return folder


def sbatch(queue: Path, words: list[str]) -> int:
    """Put an array into the queue, and leave a process that runs its tasks."""
    *options, script = words
    given = dict(word.removeprefix("--").split("=", 1) for word in options if "=" in word)
    lines = Path(script).read_text().splitlines()
    for line in lines:
        option = line.removeprefix("#SBATCH ")
        if line.startswith("#SBATCH") and not option.startswith(KNOWN):
            sys.stderr.write(f"sbatch: unrecognized option '{option}'\n")
            return 1
        if option == "--partition=none":
            sys.stderr.write("sbatch: error: invalid partition specified: none\n")
            return 1
    job = len((queue / "jobs").read_text().splitlines()) if (queue / "jobs").exists() else 0
    with (queue / "jobs").open("a") as file:
        file.write(f"{given['job-name']} {given['array']}\n")
    tasks = [int(index) for index in given["array"].split(",")]
    for index in tasks:
        (queue / f"{job}_{index}.task").write_text(f"{given['job-name']} {index}\n")
    sys.stdout.write(f"{job}\n")
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        # nobody waits for the end of what it writes to
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        _run(queue, job, tasks, script, given["output"])
        os._exit(0)
    return 0


def _run(queue: Path, job: int, tasks: list[int], script: str, output: str) -> None:
    while (queue / "held").exists():
        time.sleep(0.02)
    for index in tasks:
        task = queue / f"{job}_{index}.task"
        if not task.exists():
            continue
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(index)}
        parts = [part.replace("%a", str(index)) for part in output.split("%%")]
        log = "%".join(parts)
        with Path(log).open("a") as file:
            process = subprocess.Popen(
                ["bash", script],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            while process.poll() is None:
                if not task.exists():
                    file.write(f"slurmstepd: error: *** JOB {job} ON n1 CANCELLED ***\n")
                    file.flush()
                    _end_session(process.pid)
                    process.wait()
                time.sleep(0.02)
        task.unlink(missing_ok=True)


def _end_session(number: int) -> None:
    """End a task with all that it has started, as a cluster does."""
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # after the name, which may hold anything: state, parent, group, session
            session = int(stat_file.read_text().rpartition(")")[2].split()[3])
            if session == number:
                os.kill(int(stat_file.parent.name), signal.SIGKILL)


def scancel(queue: Path, words: list[str]) -> int:
    """Take all tasks of the jobs with a name out of the queue."""
    (name,) = words
    for task in queue.glob("*.task"):
        with suppress(FileNotFoundError):
            if task.read_text().split()[0] == name.removeprefix("--name="):
                task.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:]))
