"""MACE's own trainer as a worker in MACE's environment: settings in, errors out.

A line is JSON: `flags` of mace_run_train and, if an epoch shall be shorter than a pass over the
data, `batches`. One process serves many runs, so that imports are paid once. `seconds` is the
processor time of the epochs, without validation; errors are those of MACE's own table, 0.1 meV/atom
and meV/A. With `measure`, the model that MACE saved is tested and timed as trainer_protocol.py does
with all packages.
"""

# ruff: noqa: I001, E402
from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # MACE prints, when it is imported and later

import torch
from mace import tools
from mace.calculators import MACECalculator
from mace.cli import run_train
from mace.tools import build_default_arg_parser
from trainer_protocol import keep_freed_memory, measure, versions


TEST_ROW = re.compile(r"\|\s*(?:test\S*|\S*_test|Default\S*)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|")


class Lines(logging.Handler):
    """Keeps what MACE logs: its table of errors goes nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


class Portions:
    """A loader with epochs of a fixed number of batches, which cycle through the data."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader = loader
        self.batches = batches
        self._rest = iter(())

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.batches):
            batch = next(self._rest, None)
            if batch is None:
                self._rest = iter(self.loader)
                batch = next(self._rest)
            yield batch


def timed(
    epoch: Callable[..., Any], seconds: list[float], batches: int | None
) -> Callable[..., Any]:
    """One epoch of training, its processor seconds kept, its data a portion if that is wished."""
    portions: list[Portions] = []

    def run(*arguments: Any, data_loader: Any, **named: Any) -> Any:
        if batches and not portions:
            portions.append(Portions(data_loader, batches))
        started = time.process_time()
        result = epoch(*arguments, data_loader=portions[0] if portions else data_loader, **named)
        seconds.append(time.process_time() - started)
        return result

    return run


def test_table(table: Callable[..., Any]) -> Callable[..., Any]:
    """MACE's table of errors, but not of training structures: it costs more than it says."""

    def of_tests(*arguments: Any, **named: Any) -> Any:
        loaders = named["all_data_loaders"]
        kept = {
            name: loader
            for name, loader in loaders.items()
            if not name.startswith(("train_", "valid_"))
        }
        return table(*arguments, **named | {"all_data_loaders": kept})

    return of_tests


def train(flags: list[str], batches: int | None = None) -> dict[str, float]:
    """One run of `mace_run_train`: eV/atom, eV/A and seconds."""
    seconds: list[float] = []
    loop = sys.modules["mace.tools.train"]
    lines = Lines()  # the package has a function of this name
    original = loop.train_one_epoch
    setup = tools.setup_logger
    root = logging.getLogger()
    loop.train_one_epoch = timed(original, seconds, batches)
    try:
        # its set-up takes the handlers of before away, so this one is added through it
        tools.setup_logger = lambda *a, **k: (setup(*a, **k), root.addHandler(lines))[0]
        run_train.run(build_default_arg_parser().parse_args(flags))
    finally:
        loop.train_one_epoch = original
        tools.setup_logger = setup
        root.handlers.clear()
    rows = TEST_ROW.findall(lines.text)
    if not rows:
        raise RuntimeError(
            "no test error in MACE's output: " + " ".join(lines.text.splitlines()[-5:])
        )
    energy, force = map(float, rows[-1])
    return {
        "energy_mae_per_atom": 1e-3 * energy,
        "force_mae": 1e-3 * force,
        "seconds": sum(seconds),
    }


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    run_train.create_error_table = test_table(run_train.create_error_table)
    for line in sys.stdin:
        request = json.loads(line)
        files = request.pop("measure", None)
        row: dict[str, Any] = train(**request)
        if files:
            calculator = MACECalculator(files["model"], device="cpu", default_dtype="float32")
            row |= measure(calculator, files)
            row["versions"] = versions("mace-torch", "torch")
        print(json.dumps(row), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
