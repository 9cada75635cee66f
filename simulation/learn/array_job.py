"""Labels by a job array of Slurm: one task a label, answered by the code of `labeller.py`.

A task leaves its answer in the folder of the label, so no loop has to be there when it ends. The
job has a unique name, which is on disk before the job is submitted. By that name, a loop that is
started again finds its job in the queue. The file `asked` tells whether a label was begun:

    answered                              nothing is left to do
    in the queue                          it is waited for
    begun, no answer, has left the queue  a failure, with the last line of its log
    not begun, and not in the queue       submitted, unless it was there a moment ago
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from ...core.files import file_errors
from ...core.settings import SettingsError
from . import store
from .labeller import ANSWER, NOT_WRITTEN, LabellingError, python_path, times_asked


JOB = "job.json"
SCRIPT = "labels.sbatch"
LOG = "task-{index}.log"
# s, between two looks at the files
PATIENCE = 1.0
# s, between two questions to the controller, which all users of a cluster share
QUEUE_PATIENCE = 15.0
# s, that an answer may come after its task has left the queue: a network file system may show a
# file to other nodes as much as a minute late
GRACE = 90.0
# s, that one question to the controller may take, and that it may be silent from the start
MOST_WAITED = 120.0
PROGRAMS = ("sbatch", "squeue")
# options that users cannot give, because the loop finds its job and its tasks by them
RESERVED = (
    "array",
    "a",
    "job-name",
    "J",
    "output",
    "o",
    "error",
    "e",
    "wrap",
    "wait",
    "W",
    "test-only",
)
# exit code of `timeout` where it has ended a program
TOO_LONG = 124
EXIT_CODE = re.compile(r"the labeller ended with exit code (\d+)")


def check_options(options: Sequence[str]) -> None:
    """Raise SettingsError for options that cannot work, and if Slurm is missing."""
    for option in options:
        name = option.lstrip("-").partition("=")[0].partition(" ")[0]
        # a short option may have its value attached, such as -Jname
        letter = option[1:2] if re.match("-[A-Za-z]", option) else ""
        is_reserved = name in RESERVED or letter in RESERVED
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", option) or is_reserved:
            why = "belongs to the loop" if is_reserved else "is no option of sbatch"
            raise SettingsError(
                f"slurm: {option!r} {why}",
                remedy='give options such as slurm=["--partition=cpu","--time=04:00:00"]',
            )
    require_slurm()


def require_slurm() -> None:
    """Raise SettingsError where a program of Slurm is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SettingsError(
            f"slurm: there is no {' and no '.join(missing)} on the PATH of this machine",
            remedy="start the command on a node from which jobs are submitted",
        )


def await_answers(
    folder: Path,
    places: Sequence[Path],
    options: Sequence[str] | None,
    timeout: float,
    show: Callable[[int], None],
) -> None:
    """Submit what is needed, and return when each place has an answer.

    places: folders with a request; the position in the sequence is the number of the task.
    options: of sbatch. None submits nothing, and returns when no task in the queue can answer what
        is missing.
    timeout: s, for one label.
    show: is told the number of answers.

    Raises LabellingError if sbatch refuses the job, if the job has left the queue before all of its
    labels were begun, and if a task could not write.
    """
    if _missing(places):
        require_slurm()
        waiting = _Waiting(folder, places, timeout)
        while missing := _missing(places):
            show(len(places) - len(missing))
            queue = waiting.ask()
            to_submit = [] if queue is None else waiting.look(missing, queue)
            if to_submit and options is not None:
                waiting.submit(to_submit, options)
            elif to_submit == missing:
                return
            _sleep(places)


class _Waiting:
    """What this process knows of the job of one round."""

    def __init__(self, folder: Path, places: Sequence[Path], timeout: float) -> None:
        self.folder = folder
        self.places = places
        self.timeout = timeout
        if not (folder / JOB).exists():
            store.write(folder / JOB, {"name": f"evenfield-{uuid.uuid4().hex[:12]}"})
        self.name: str = store.read(folder / JOB)["name"]
        self._seen: set[int] = set()
        """Tasks that this process has seen in the queue, or has submitted."""
        self._absent_since: dict[int, float] = {}
        """Task -> when it was first found missing from the queue."""
        self._has_answered = False
        """Whether the controller has ever answered this process."""
        self._began = time.monotonic()

    def ask(self) -> set[int] | None:
        """The tasks in the queue; None if the controller does not answer at the moment.

        A controller that restarts forgets no job, so its silence is waited out. Raises
        LabellingError if it has never answered.
        """
        words = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%K"]
        said = "no answer"
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=MOST_WAITED
            )
        except subprocess.TimeoutExpired:
            pass
        else:
            if done.returncode == 0:
                self._has_answered = True
                return {int(index) for index in done.stdout.split() if index.isdigit()}
            said = done.stderr.strip() or f"exit code {done.returncode}"
        if not self._has_answered and time.monotonic() - self._began > MOST_WAITED:
            raise LabellingError(
                f"squeue says nothing about jobs: {said[-200:]}",
                file=self.folder,
                remedy="start the command again when it does; no label is lost",
            )
        return None

    def look(self, missing: list[int], queue: set[int]) -> list[int]:
        """Write failures for tasks that ended without an answer; returns those to submit.

        Raises LabellingError for tasks that have left the queue before they began, or that could
        not write.
        """
        self._seen |= queue
        to_submit: list[int] = []
        gone: list[tuple[int, str]] = []
        for index in missing:
            place = self.places[index]
            if index in queue:
                self._absent_since.pop(index, None)
                continue
            begun = bool(times_asked(place))
            since = self._absent_since.setdefault(index, time.monotonic())
            if (begun or index in self._seen) and time.monotonic() - since < GRACE:
                continue
            code, last = _end_of(self.folder / LOG.format(index=index))
            if (place / ANSWER).exists():
                # it has come since `missing` was made
                continue
            if begun and code != NOT_WRITTEN:
                store.write(place / ANSWER, self._failure(code, last))
            elif index in self._seen:
                gone.append((index, last))
            else:
                to_submit.append(index)
        if gone:
            index, last = gone[0]
            raise LabellingError(
                f"the job {self.name} has left the queue without {len(gone)} of its labels: it "
                f"was cancelled, or could not start or write; the log of task {index}: {last}",
                file=self.folder,
                remedy="start the command again, and what was not labelled is submitted again",
            )
        return to_submit

    def submit(self, tasks: Sequence[int], options: Sequence[str]) -> None:
        """Submit a job with a task for each of these labels."""
        script = self.folder / SCRIPT
        with file_errors(script):
            script.write_text(_script(self.folder, options, self.timeout))
        # a percent sign in the path must not begin a pattern
        logs = str(self.folder.resolve()).replace("%", "%%") + "/" + LOG.format(index="%a")
        words = [
            "sbatch",
            "--parsable",
            f"--job-name={self.name}",
            f"--array={','.join(map(str, tasks))}",
            f"--output={logs}",
            str(script),
        ]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
            raise LabellingError(
                f"sbatch refused the job of the labels: {said[-1][:200]}",
                file=script,
                remedy="change slurm=[...], and start the command again",
            )
        self._seen |= set(tasks)

    def _failure(self, code: int | None, last: str) -> dict[str, object]:
        """The answer for a task that was begun and has left none."""
        if code == TOO_LONG:
            detail = f"no label after {self.timeout:g} s"
            return {"failure": "time-out", "detail": detail, "seconds": self.timeout}
        how = "its task left the queue" if code is None else f"exit code {code}"
        return {"failure": "oracle_ended", "detail": f"{how}: {last[:200]}", "seconds": 0.0}


def _script(folder: Path, options: Sequence[str], timeout: float) -> str:
    """The batch script of a job, with the options of the user."""
    limit = ["timeout", "--kill-after=30", str(timeout)]
    labeller = [*limit, sys.executable, "-m", f"{__package__}.labeller", str(folder.resolve())]
    lines = [
        "#!/bin/bash",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        *(f"#SBATCH {option}" for option in options),
        f"export PYTHONPATH={shlex.quote(python_path())}",
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        f'{shlex.join(labeller)} "$SLURM_ARRAY_TASK_ID"',
        "code=$?",
        'if [ "$code" -ne 0 ]; then echo "the labeller ended with exit code $code"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _missing(places: Sequence[Path]) -> list[int]:
    """Tasks without an answer."""
    return [index for index, place in enumerate(places) if not (place / ANSWER).exists()]


def _sleep(places: Sequence[Path]) -> None:
    """Wait until the next question to the controller, or until all answers are there."""
    end = time.monotonic() + QUEUE_PATIENCE
    while time.monotonic() < end and _missing(places):
        time.sleep(PATIENCE)


def _end_of(log: Path) -> tuple[int | None, str]:
    """The exit code of a task, if its script reported one, and the last line before that."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return None, "it left no log"
    code = None
    if lines and (found := EXIT_CODE.fullmatch(lines[-1].strip())):
        code = int(found[1])
        lines.pop()
    return code, lines[-1].strip() if lines else "it said nothing"
