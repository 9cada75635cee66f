"""What the ASE calculator costs in addition to the network, and the first call after a load.

    python benchmarks/calculator_overhead.py [--model FOLDER_OR_NAME] [--channels 32]
        [--calls 60] [--repeat 4 4 4]

A crystal of copper (64 atoms by default) moves by 0.01 A a call, as in dynamics.  Overhead: time of
the call less time inside the potential, over the latter; medians over the calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from ase.build import bulk

from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig, load, save_model


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or name of a model; default: fresh weights")
    parser.add_argument("--channels", type=int, default=32, help="of the fresh model")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--repeat", type=int, nargs=3, default=(4, 4, 4))
    parser.add_argument("--skin", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        reference = arguments.model or fresh_model(Path(folder), arguments.channels)
        started = time.perf_counter()
        model = load(reference)
        calculator = model.calculator(skin=arguments.skin, level_of_theory=level_with_copper(model))
        load_seconds = time.perf_counter() - started
        print(
            json.dumps(
                measure(calculator, arguments.repeat, arguments.calls)
                | {"load_seconds": load_seconds}
            )
        )


def fresh_model(folder: Path, channels: int) -> Path:
    """A model for copper that was not trained: speed does not depend on it."""
    record = ModelRecord(name="fresh", elements={"EMT": ["Cu"]})
    return save_model(
        folder / "fresh",
        Potential(PotentialConfig(channels=channels, levels_of_theory=["EMT"])),
        record,
    )


def level_with_copper(model: object) -> str:
    """A level of theory that knows copper."""
    return next(level for level, symbols in model.record.elements.items() if "Cu" in symbols)


def measure(calculator: object, repeat: tuple[int, int, int], calls: int) -> dict[str, float]:
    """Medians in ms, after the first call, which is listed separately in s."""
    inside: list[float] = []
    forward = calculator.potential.forward

    def timed(batch: object) -> object:
        started = time.perf_counter()
        out = forward(batch)
        inside.append(time.perf_counter() - started)
        return out

    calculator.potential.forward = timed
    rng = np.random.default_rng(0)
    atoms = bulk("Cu") * repeat
    totals = []
    for _ in range(calls + 3):
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        started = time.perf_counter()
        calculator.calculate(atoms)
        totals.append(time.perf_counter() - started)
    total = statistics.median(totals[3:])
    network = statistics.median(inside[3:])
    outside = statistics.median(t - n for t, n in zip(totals[3:], inside[3:], strict=True))
    return {
        "atoms": len(atoms),
        "call_ms": 1000 * total,
        "network_ms": 1000 * network,
        "outside_ms": 1000 * outside,
        "overhead": outside / network,
        "searches": calculator.verlet_list.num_searches,
        "first_call_seconds": totals[0],
    }


if __name__ == "__main__":
    main()
