"""The census compared with a raw pyarrow scan of the same columns, per CPU second.

    python benchmarks/census_scan.py

Makes 100,000 structures of 20 to 80 atoms with 2 to 6 of 89 elements in a temporary folder, in
shards as conversion writes them, then counts and scans them in turn, in one process.  The scan
decodes the columns that the census needs and looks at none of them.  The figure of merit is the
median over rounds of (CPU seconds of the scan) / (CPU seconds of the census): the share of the
scan's rate that the census keeps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evenfield.data_pipelines.census.census import ROWS_AT_ONCE, Census, count_shards
from evenfield.data_pipelines.store.shards import ARROW_SCHEMA, SHARD_SIZE, write_shard


RESULT = Path(__file__).resolve().parent / "results" / "census_scan.json"


def synthetic_table(rng: np.random.Generator, count: int) -> pa.Table:
    """`count` structures with random labels; only their shapes and statistics matter here."""
    sizes = rng.integers(20, 81, count)
    palettes = [
        rng.choice(np.arange(1, 90), rng.integers(2, 7), replace=False) for _ in range(count)
    ]
    numbers = np.concatenate(
        [rng.choice(palette, size) for palette, size in zip(palettes, sizes, strict=True)]
    )
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    def vectors(scale: float) -> pa.Array:
        return pa.ListArray.from_arrays(
            3 * ends, rng.normal(0, scale, 3 * len(numbers)).astype(np.float32)
        )

    nine = np.arange(count + 1, dtype=np.int32) * 9
    columns = {
        "structure_id": [str(k) for k in range(count)],
        "group": [str(k // 8) for k in range(count)],
        "level_of_theory": ["PBE"] * count,
        "atomic_numbers": pa.ListArray.from_arrays(ends, numbers.astype(np.uint8)),
        "positions": vectors(5.0),
        "cell": pa.ListArray.from_arrays(nine, rng.normal(0, 10, 9 * count)),
        "pbc": [[True] * 3] * count,
        "energy": rng.normal(-4, 1, count) * sizes,
        "forces": vectors(0.5),
        "stress": pa.ListArray.from_arrays(nine, rng.normal(0, 0.01, 9 * count)),
    }
    return pa.table(columns, schema=ARROW_SCHEMA)


def raw_scan(paths: list[Path]) -> None:
    """Decode the census's columns and nothing else."""
    for path in paths:
        for _ in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE, columns=list(Census.COLUMNS)):
            pass


def cpu_seconds(work: Callable[[list[Path]], object], paths: list[Path]) -> float:
    """CPU seconds of this process, all threads."""
    started = time.process_time()
    work(paths)
    return time.process_time() - started


def main() -> None:
    """Measure and write results/census_scan.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for first in range(0, arguments.structures, SHARD_SIZE):
            paths.append(Path(folder) / f"train-{first // SHARD_SIZE:05d}.parquet")
            write_shard(
                synthetic_table(rng, min(SHARD_SIZE, arguments.structures - first)), paths[-1]
            )
        raw_scan(paths)
        count_shards(paths)
        samples: dict[str, list[float]] = {"scan": [], "census": []}
        for _ in range(arguments.rounds):
            samples["scan"].append(cpu_seconds(raw_scan, paths))
            samples["census"].append(cpu_seconds(count_shards, paths))
    ratios = [
        scan / census for scan, census in zip(samples["scan"], samples["census"], strict=True)
    ]
    result = {
        "command": " ".join(["python benchmarks/census_scan.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "structures_per_cpu_second": {
            name: arguments.structures / statistics.median(values)
            for name, values in samples.items()
        },
        "cpu_seconds": samples,
        "structures": arguments.structures,
        "versions": {
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "numpy": np.__version__,
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"census keeps {result['ratio']:.2f} of the scan's rate; "
        f"{result['structures_per_cpu_second']}"
    )


if __name__ == "__main__":
    main()
