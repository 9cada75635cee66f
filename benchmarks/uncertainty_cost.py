"""What uncertainties cost: calls of the calculator with and without, interleaved.

    python benchmarks/uncertainty_cost.py MODEL [--calls 9] [--keep-freed-memory] [--out FILE.json]

MODEL has a record of its uncertainty. Rocksalt of 64 and 512 atoms moves by 0.01 A a call, as in
dynamics. Processor seconds of one thread; the ratio is the median of those of pairs of calls. With
--keep-freed-memory, memory is kept as `evenfield simulate` keeps it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk

from evenfield.core.freed_memory import keep_freed_memory
from evenfield.model_zoo import load


def main() -> None:
    """Print one JSON object, and write it where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("--calls", type=int, default=9)
    parser.add_argument("--keep-freed-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.keep_freed_memory:
        keep_freed_memory()
    model = load(arguments.model)
    result: dict[str, object] = {
        "model": model.reference,
        "calls": arguments.calls,
        "keep_freed_memory": arguments.keep_freed_memory,
    }
    for repeats in (2, 4):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeats, repeats, repeats)
        plain = model.calculator(warn_outside=False)
        judged = model.calculator(warn_outside=False, uncertainty=True)
        rng = np.random.default_rng(0)
        ratios = []
        seconds = []
        for call in range(arguments.calls + 1):
            atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
            spent = {}
            # in turn, so that a machine that slows down slows both down
            order = (plain, judged) if call % 2 else (judged, plain)
            for calculator in order:
                started = time.process_time()
                calculator.calculate(atoms)
                spent[calculator] = time.process_time() - started
            # the first call searches neighbours and fills caches
            if call:
                ratios.append(spent[judged] / spent[plain])
                seconds.append(spent[plain])
        result[f"{len(atoms)} atoms"] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            "plain_ms": round(1000 * statistics.median(seconds), 1),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
