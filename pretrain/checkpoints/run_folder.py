"""The run folder: checked for other content, set aside for a new run, and locked."""

from __future__ import annotations

import glob
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Literal

from ...core.destination import PAGES, check_destination, contents, keep_files_of_others, kind_of
from ...core.files import file_errors
from ...core.locks import LockedError, held
from ...core.rich_console import Console
from ...data_pipelines.stream.collection import Collection
from ...model_zoo.package.folder import files_of_model
from ..config import PretrainConfig
from ..errors import NoCheckpointError, ResumeError
from ..monitor.run_view import WATCH_PAGE
from .checkpoints import choose_checkpoint


Resume = Literal["no", "auto", "must"]

LOCK = ".lock"
# suffix of an old run that is being removed
REMOVED = ".removed"
# files that a run writes into its folder, besides the model
OWN_FILE = re.compile(
    r"config\.yaml|metrics\.jsonl|evaluation\.json|predictions\.npz"
    r"|hang-rank-\d+\.txt|wandb-id\.txt|wandb"
    r"|tensorboard/events\.out\.tfevents\.[^/]*"
    r"|checkpoints/(latest|(\.tmp-)?step-\d+)"
    r"|\.lock|(checkpoints/)?\.[^/]*\.tmp"
)


def refuse_occupied(
    config: PretrainConfig, data: Collection, resume: Resume, *, overwrite: bool = False
) -> None:
    """Raise DestinationError or ResumeError if the run would replace content of its folder.

    Among other things, pruning would keep an old run's checkpoints and delete the new ones.

    Raises NoCheckpointError if `auto` finds only damaged checkpoints. Restarting from step 0
    without asking would throw away hours of work that they may still contain.
    """
    out = Path(config.out)
    folder = out / "checkpoints"
    name, skipped = choose_checkpoint(folder)
    damaged = [reason for reason in skipped if reason.startswith("step-")]
    if resume == "auto" and not name and damaged and not overwrite:
        # an unfinished save does not count as damage: the run was killed during its first save
        refusal = NoCheckpointError(folder, damaged)
        refusal.remedy = how_to_go_on_without_checkpoint(out)
        raise refusal
    if resume == "must" or (resume == "auto" and (name or _is_unfinished_run(out))):
        return
    if name and not overwrite:
        raise ResumeError(
            f"already holds a run, saved at {name}",
            remedy="add --resume auto to continue it, name another folder, or replace it with "
            "--overwrite",
            file=out,
        )
    if not _holds_nothing(out):
        how = "replace it with --overwrite"
        if resume != "no":
            # --overwrite and --resume exclude each other
            how = "start a new run with --overwrite in place of --resume"
        check_destination(
            out,
            overwrite=overwrite,
            kinds=["a training run"],
            inputs=data.folders,
            elsewhere="name another folder with out",
            remedy=f"name another folder with out, or {how}",
        )


def how_to_go_on_without_checkpoint(out: Path) -> str:
    """The remedy for a user who resumes from a folder without an intact checkpoint."""
    if contents(out) is None or _holds_nothing(out):
        return "start without --resume"
    if kind_of(out) == "a training run":
        if any((out / "checkpoints").glob("step-*")):
            return (
                "put a whole copy of the checkpoint back, or start a new run with --overwrite in "
                "place of --resume, or in another folder"
            )
        return "start a new run with --overwrite in place of --resume, or in another folder"
    return "name the folder of the run with out"


def _is_unfinished_run(out: Path) -> bool:
    """Whether the folder holds a run that was killed before it wrote a model."""
    return kind_of(out) == "a training run" and not (out / "model").exists()


def _holds_nothing(out: Path) -> bool:
    """Whether the folder exists and is empty, apart from leftovers of a process killed early."""
    if not out.is_dir():
        return False
    names = [path.name for path in out.iterdir()]
    return all(name == LOCK or (name[0] == "." and name.endswith(".tmp")) for name in names)


@contextmanager
def run_set_aside(out: Path, console: Console, *, overwrite: bool) -> Iterator[None]:
    """Set the content of the run folder aside for a new run, and remove it once that has finished.

    Files that a user has added are carried over into the folder of the new run.

    If the block fails before anything was written, the old run is restored. If it fails later, both
    runs are kept: the new one can be resumed, and the old one stays in a separate folder.
    """
    if not overwrite or not out.exists() or _holds_nothing(out):
        yield
        return

    _remove_leftovers(out)
    # raises while another process trains into the folder
    with sole_writer(out), file_errors(out):
        old = _unused_name(out)
        out.rename(old)
    console.print(f"what {out} held is kept as {old} until the new run has ended")
    try:
        yield
    except BaseException:
        if not out.exists() or _holds_nothing(out):
            shutil.rmtree(out, ignore_errors=True)
            old.rename(out)
        raise
    if (out / "model").is_dir():
        with file_errors(out):
            keep_files_of_others(old, out, files_of_run(old))
        # Renamed first: if the process is killed while it removes the folder, the rest must not
        # look like the old run. The next run removes it.
        with suppress(OSError):
            old = old.rename(out.with_name(f".{old.name}{REMOVED}"))
        shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.old-*{REMOVED}"):
        shutil.rmtree(leftover, ignore_errors=True)


def files_of_run(out: Path) -> Callable[[str], bool]:
    """A function that tells whether a path inside a run folder was written by pretraining."""
    is_of_model = files_of_model(out / "model")

    def is_ours(name: str) -> bool:
        if name == WATCH_PAGE:
            # written by a separate command, and a user may have a page with this name
            return PAGES.is_at(out / name)
        if name.startswith("model/"):
            return is_of_model(name.removeprefix("model/"))
        return OWN_FILE.fullmatch(name) is not None

    return is_ours


def _unused_name(out: Path) -> Path:
    """The first unused path of the form NAME.old-N next to the run folder."""
    names = (out.with_name(f"{out.name}.old-{number}") for number in itertools.count(1))
    # a dangling link also counts as used
    return next(name for name in names if not name.exists() and not name.is_symlink())


def sole_writer(out: Path) -> AbstractContextManager[None]:
    """Lock the run folder against other processes, such as a rank that outlived its launcher.

    Raises LockedError on entering if another process holds the lock.
    """
    refusal = LockedError(
        "another process trains into this folder",
        remedy="end it first, or name another folder",
        file=out,
    )
    return held(out / LOCK, refusal)
