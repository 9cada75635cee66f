"""MACE's own trainer as a worker, in MACE's virtual environment: a line of flags in, test errors and seconds out.

One process serves many runs, so that imports are paid once. `seconds` is the processor time of MACE's training loop.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # MACE prints, when it is imported and later

from mace import tools
from mace.cli import run_train
from mace.tools import build_default_arg_parser


TEST_ROW = re.compile(r"\|\s*(?:test\S*|\S*_test|Default\S*)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|")


class Lines(logging.Handler):
    """Keeps what MACE logs: its table of errors goes nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def timed(train: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def loop(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        result = train(*arguments, **named)
        seconds.append(time.process_time() - started)
        return result

    return loop


def test_table(table: Callable[..., Any]) -> Callable[..., Any]:
    """MACE's table of errors, but not of training structures: it costs more than it says."""

    def of_tests(*arguments: Any, **named: Any) -> Any:
        loaders = named["all_data_loaders"]
        kept = {name: loader for name, loader in loaders.items() if not name.startswith(("train_", "valid_"))}
        return table(*arguments, **named | {"all_data_loaders": kept})

    return of_tests


def train(flags: list[str]) -> dict[str, float]:
    """One run of `mace_run_train`: eV/atom, eV/A and seconds."""
    seconds: list[float] = []
    lines, original, setup = Lines(), tools.train, tools.setup_logger
    root = logging.getLogger()
    tools.train = timed(original, seconds)
    try:
        # its set-up takes the handlers of before away, so this one is added through it
        tools.setup_logger = lambda *a, **k: (setup(*a, **k), root.addHandler(lines))[0]
        run_train.run(build_default_arg_parser().parse_args(flags))
    finally:
        tools.train, tools.setup_logger = original, setup
        root.handlers.clear()
    rows = TEST_ROW.findall(lines.text)
    if not rows:
        raise RuntimeError("no test error in MACE's output: " + " ".join(lines.text.splitlines()[-5:]))
    energy, force = map(float, rows[-1])
    return {"energy_mae_per_atom": 1e-3 * energy, "force_mae": 1e-3 * force, "seconds": sum(seconds)}


def main() -> None:
    run_train.create_error_table = test_table(run_train.create_error_table)
    for line in sys.stdin:
        print(json.dumps(train(json.loads(line))), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
