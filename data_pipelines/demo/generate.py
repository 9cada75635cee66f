"""The demo data: structures made by a seeded generator and labelled by real calculators.

60 % clusters and 20 % molecules at GFN1-xTB (tblite), 20 % periodic metals at EMT (ASE). On
request all are of one kind, for example molecules of organic chemistry, or further clusters are
added that only test, with all cations alike.

Structure `index` takes all its random numbers from `default_rng([seed, index])`. Neither the
number of structures nor the number of processes therefore changes it. Another kind of processor
may, where a rejection is a close call. A candidate that gets no label is replaced by another, and
listed in a JSON file next to the output.

`sample/demo_sample.extxyz.gz` was made by

    python -c "from evenfield.data_pipelines.demo.generate import *; generate(GeneratorConfig(
        num_structures=160, seed=1), 'data_pipelines/demo/sample/demo_sample.extxyz.gz')"
"""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Self

from ase import Atoms
from ase.io.extxyz import write_xyz
from pydantic import Field, model_validator
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ...core.destination import FileKind, check_destination
from ...core.files import FileError, file_errors, write_atomically
from ...core.rich_console import Console
from ...core.settings import Settings
from ...core.workers import MOST_WORKERS, worker_pool
from .labelled_structure import Failure, FamilyName, labelled_structure
from .oracles import require_tblite


SUFFIXES = (".extxyz", ".xyz", ".extxyz.gz", ".xyz.gz")

# enough work for a worker that asking for more costs nothing, and a bar that moves
STRUCTURES_PER_TASK = 8

# the number of atoms, and the comment, of the first frame that is written
BYTES_OF_FIRST_FRAME = 4096
FIRST_NAME = re.compile(rb" level_of_theory=\S+ structure_id=embedded-(?:[a-z]+-)?\d+-\d+ group=")

RARE = 5  # an element in at most so many structures


class GeneratorConfig(Settings):
    """How many structures, from which seed, on how many processes."""

    num_structures: int = Field(default=2000, ge=1, description="structures to make")
    seed: int = Field(
        default=0, ge=0, description="every structure follows from the seed and its index"
    )
    only: FamilyName | None = Field(
        default=None,
        description="one kind of structures: cluster, molecule, metal, or organic, molecules of H, "
        "C, N and O, or even_cluster, clusters with two cations of which all are as likely; "
        "default: the first three, 60, 20 and 20 percent",
    )
    even_test: int = Field(
        default=0,
        ge=0,
        description="further structures of the kind even_cluster, which state that they are for "
        "testing: enough to judge rare elements by",
    )
    workers: int | None = Field(
        default=None, ge=1, le=MOST_WORKERS, description="processes; default: one per core"
    )

    @model_validator(mode="after")
    def _check_even_test(self) -> Self:
        if self.only == "even_cluster" and self.even_test:
            raise ValueError("even_test: only=even_cluster makes the same structures: leave it out")
        return self


class GenerationReport(Settings):
    """What `generate` made: counts of structures and of failures, and wall time in seconds."""

    path: Path
    failures_path: Path
    num_structures: int
    structures_by_config_type: dict[str, int]
    structures_by_element: dict[str, int]
    failures_by_reason: dict[str, int]
    seconds: float


def _failures_path(out_path: Path) -> Path:
    return out_path.with_name(f"{out_path.name}.failures.json")


def _is_failures(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, dict) and "failures_by_reason" in content


def _is_generated(path: Path) -> bool:
    """Whether the first frame has the name that a generation gives it, and nobody else."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        beginning = file.read(BYTES_OF_FIRST_FRAME)
    comment = beginning.split(b"\n")[1:2]
    return bool(comment) and FIRST_NAME.search(comment[0]) is not None


FAILURES = FileKind("failures of `evenfield data generate`", _is_failures)
GENERATED = FileKind("structures of `evenfield data generate`", _is_generated)


def generate(
    config: GeneratorConfig, out_path: Path | str, *, overwrite: bool = False
) -> GenerationReport:
    """Write `config.num_structures` labelled structures to `out_path`.

    The name ends in .extxyz or .xyz, or either with .gz. The file appears whole or not at all;
    `<out_path>.failures.json` lists the candidates without a label. A file that exists is replaced
    with `overwrite` only. Processes are spawned: call
    this from a module or under `if __name__ == "__main__":`.

    Raises MissingPackageError without tblite, DestinationError when `out_path` exists, and
    FileError for an unknown suffix or a path that cannot be written.
    """
    out_path = Path(out_path)
    if not out_path.name.endswith(SUFFIXES):
        raise FileError(
            "the name has an unknown ending", file=out_path, remedy=f"use {', '.join(SUFFIXES)}"
        )
    check_destination(out_path, overwrite=overwrite, file_kind=GENERATED)
    # the list goes with its structures, and is written again with them
    check_destination(_failures_path(out_path), overwrite=True, file_kind=FAILURES)
    require_tblite()
    # before the work, which may take minutes: a path that cannot be written is known at once
    with file_errors(out_path):
        out_path.parent.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    console = Console(stderr=True)
    frames, failures = _make_all(config, console)
    elements_of = [sorted(set(atoms.symbols)) for atoms in frames]
    report = GenerationReport(
        path=out_path,
        failures_path=_failures_path(out_path),
        num_structures=len(frames),
        structures_by_config_type=_count(atoms.info["config_type"] for atoms in frames),
        structures_by_element=_count(symbol for elements in elements_of for symbol in elements),
        failures_by_reason=_count(failure.reason for failure in failures),
        seconds=time.perf_counter() - started,
    )

    with file_errors(out_path):
        write_atomically(report.failures_path, _failures_json(config, failures))
        write_atomically(out_path, _extxyz(frames, compressed=out_path.suffix == ".gz"))
    _print_summary(report, console)
    return report


def _make_all(config: GeneratorConfig, console: Console) -> tuple[list[Atoms], list[Failure]]:
    """All structures, and all candidates that got no label, in the order of their indices."""
    with (
        worker_pool(config.workers) as executor,
        _progress(console, config.num_structures + config.even_test) as advance,
    ):
        frames, failures = _make(executor, advance, config.seed, config.only, config.num_structures)
        tests, failed_tests = _make(
            executor, advance, config.seed, "even_cluster", config.even_test
        )
    for atoms in tests:
        atoms.info["split"] = "test"
    return frames + tests, failures + failed_tests


def _make(
    executor: Executor,
    advance: Callable[[], None],
    seed: int,
    only: FamilyName | None,
    number: int,
) -> tuple[list[Atoms], list[Failure]]:
    """The first `number` structures of one kind, and the candidates that got no label."""
    frames = []
    failures = []
    make = partial(labelled_structure, seed, only=only)
    for atoms, failed in executor.map(make, range(number), chunksize=STRUCTURES_PER_TASK):
        if atoms is not None:
            frames.append(atoms)
        failures += failed
        advance()
    return frames, failures


@contextmanager
def _progress(console: Console, total: int) -> Iterator[partial[None]]:
    """A progress bar; yields the function that advances it by one structure."""
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield partial(progress.advance, progress.add_task("", total=total))


class _RateColumn(ProgressColumn):
    """Structures per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} structures/s" if task.speed else "")


def _extxyz(frames: list[Atoms], compressed: bool) -> bytes:
    """The frames as extended xyz, perhaps compressed."""
    text = io.StringIO()
    write_xyz(text, frames)
    data = text.getvalue().encode()
    if not compressed:
        return data
    # without a time stamp, equal frames give equal bytes
    return gzip.compress(data, mtime=0)


def _failures_json(config: GeneratorConfig, failures: list[Failure]) -> str:
    """Settings, counts by reason, and one line per failure."""
    head = {
        "num_structures": config.num_structures,
        "seed": config.seed,
        "only": config.only,
        "even_test": config.even_test,
        "num_failures": len(failures),
        "failures_by_reason": _count(failure.reason for failure in failures),
    }
    # by hand, because json either indents everything or writes everything on one line
    opened = json.dumps(head).removesuffix("}")
    lines = ",\n".join(json.dumps(asdict(failure)) for failure in failures)
    return f'{opened}, "failures": [\n{lines}\n]}}\n'


def _count(names: Iterator[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())


def _print_summary(report: GenerationReport, console: Console) -> None:
    """One line on what was made, one on what failed."""
    num_elements = len(report.structures_by_element)
    num_rare = sum(count <= RARE for count in report.structures_by_element.values())
    types = _listed(report.structures_by_config_type)
    console.print(
        f"{report.path}: {report.num_structures} structures ({types}); {num_elements} elements, "
        f"{num_rare} of them in at most {RARE} structures; {report.seconds:.0f} s",
        soft_wrap=True,
    )
    if report.failures_by_reason:
        reasons = _listed(report.failures_by_reason)
        console.print(
            f"candidates without a label, replaced by others: {reasons}; "
            f"see {report.failures_path}",
            soft_wrap=True,
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
