"""Labels by a job array of Slurm: one task a label, answered by the code of `labeller.py`.

A task leaves its answer in the folder of the label, so that it needs no loop that waits for it. The
job has a name of its own, which is on disk before it is submitted: a loop that is started again
finds its job in the queue by it. Whether a label was begun is told by the file `asked`:

    answered                                       nothing is left to do
    in the queue                                   it is waited for
    begun, but in the queue no more, no answer     a failure, with the last line of its log
    not begun, and not in the queue                submitted, if it was not a moment ago
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
# s, between two looks at the files, and between two questions to the controller, which all users
# of a cluster share
PATIENCE = 1.0
QUEUE_PATIENCE = 15.0
# s, after which a task that has left the queue has left no answer: a network file system may show
# a file to other nodes a minute later
GRACE = 90.0
# s, for an answer of the controller; then it is asked again
MOST_WAITED = 120.0
PROGRAMS = ("sbatch", "squeue")
# options that say how the loop finds its job and its tasks
OURS = (
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
    """Raise SettingsError for options that cannot work, and without Slurm."""
    for option in options:
        name = option.lstrip("-").partition("=")[0].partition(" ")[0]
        is_ours = name in OURS or (not option.startswith("--") and option[1:2] in OURS)
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", option) or is_ours:
            why = "belongs to the loop" if is_ours else "is no option of sbatch"
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
    """Return when each place has an answer, or, without options, when no task is left that might.

    places: folders with a request, whose position is the number of the task. options: lines for
    sbatch; None where nothing may be submitted any more. timeout: s, for one label.

    Raises LabellingError where sbatch refuses the job, where the job has left the queue before all
    of its labels were begun, and where a task could not write.
    """
    if _missing(places):
        require_slurm()
        waiting = _Waiting(folder, places, timeout)
        while missing := _missing(places):
            show(len(places) - len(missing))
            queue = waiting.ask()
            lost = [] if queue is None else waiting.look(missing, queue)
            if lost and options is not None:
                waiting.submit(lost, options)
            elif lost == missing:
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
        """Tasks that were in the queue since this process began, or that it has submitted."""
        self._left: dict[int, float] = {}
        """Since when a task is in the queue no more, or was not found there."""
        self._answered = False
        self._silent_since = time.monotonic()

    def ask(self) -> set[int] | None:
        """The tasks in the queue; None where the controller does not answer now.

        One that is restarted forgets no job. Raises LabellingError where it has never answered.
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
                self._answered = True
                return {int(index) for index in done.stdout.split() if index.isdigit()}
            said = done.stderr.strip() or f"exit code {done.returncode}"
        if not self._answered and time.monotonic() - self._silent_since > MOST_WAITED:
            raise LabellingError(
                f"squeue says nothing about jobs: {said[-200:]}",
                file=self.folder,
                remedy="start the command again when it does; no label is lost",
            )
        return None

    def look(self, missing: list[int], queue: set[int]) -> list[int]:
        """Settle what has ended without an answer; returns the tasks that are to be submitted."""
        self._seen |= queue
        lost: list[int] = []
        ended: list[tuple[int, str]] = []
        for index in missing:
            place = self.places[index]
            if index in queue:
                self._left.pop(index, None)
                continue
            begun = bool(times_asked(place))
            since = self._left.setdefault(index, time.monotonic())
            if (begun or index in self._seen) and time.monotonic() - since < GRACE:
                continue
            code, last = _end_of(self.folder / LOG.format(index=index))
            if (place / ANSWER).exists():
                # it has come since they were counted
                continue
            if begun and code != NOT_WRITTEN:
                store.write(place / ANSWER, self._failure(code, last))
            elif index in self._seen:
                ended.append((index, last))
            else:
                lost.append(index)
        if ended:
            index, last = ended[0]
            raise LabellingError(
                f"the job {self.name} has left the queue without {len(ended)} of its labels: it "
                f"was cancelled, or could not start or write; the log of task {index}: {last}",
                file=self.folder,
                remedy="start the command again, and what was not labelled is submitted again",
            )
        return lost

    def submit(self, tasks: Sequence[int], options: Sequence[str]) -> None:
        """Submit a job with a task for each of these labels."""
        script = self.folder / SCRIPT
        with file_errors(script):
            script.write_text(_script(self.folder, options, self.timeout))
        # a percent sign of the path begins no pattern
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
        """The answer in place of a task that was begun and has left none."""
        if code == TOO_LONG:
            detail = f"no label after {self.timeout:g} s"
            return {"failure": "time-out", "detail": detail, "seconds": self.timeout}
        how = "its task left the queue" if code is None else f"exit code {code}"
        return {"failure": "oracle_ended", "detail": f"{how}: {last[:200]}", "seconds": 0.0}


def _script(folder: Path, options: Sequence[str], timeout: float) -> str:
    """The batch script of a job; its first lines are those of the user."""
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
    """The exit code of a task, if its script has come to its end, and the last thing it said."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return None, "it left no log"
    code = None
    if lines and (found := EXIT_CODE.fullmatch(lines[-1].strip())):
        code = int(found[1])
        lines.pop()
    return code, lines[-1].strip() if lines else "it said nothing"
