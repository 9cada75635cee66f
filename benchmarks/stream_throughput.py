"""The stream compared with a raw Arrow scan of the same files, and how full batches are.

    python benchmarks/stream_throughput.py [--structures 100000]

Makes its data in a temporary folder: structures of 20 to 80 atoms with energy, forces and stress.
The sides take turns, five rounds; what counts is the median of the ratios. Writes
results/stream_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.progress import track

from evenfield.core.labels import present
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.census.weights import WeightConfig
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.shards import shard_paths
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.packing import pack
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.stream import Stream
from evenfield.data_pipelines.structure import Structure


ROUNDS = 5


def synthetic(number: int, sizes: tuple[int, int] = (20, 80)) -> Iterator[Structure]:
    """Structures of random atoms at 18 A^3 each, of four elements drawn from a long tail of 89."""
    rng = np.random.default_rng(0)
    tail = 1 / np.arange(1, 90)
    for k in range(number):
        num_atoms = int(rng.integers(sizes[0], sizes[1] + 1))
        side = (18.0 * num_atoms) ** (1 / 3)
        elements = rng.choice(89, 4, p=tail / tail.sum()) + 1
        yield Structure(
            atomic_numbers=rng.choice(elements, num_atoms).astype(np.int64),
            positions=rng.uniform(0, side, (num_atoms, 3)),
            cell=np.eye(3) * side,
            pbc=np.ones(3, bool),
            level_of_theory="PBE",
            structure_id=f"s-{k}",
            group=f"g-{k}",
            split="train",
            labels=present(
                {
                    "energy": float(rng.normal() * num_atoms),
                    "forces": rng.normal(size=(num_atoms, 3)),
                    "stress": rng.normal(size=(3, 3)),
                }
            ),
        )


def open_stream(folder: Path, rank: int = 0, world_size: int = 1, **config: int) -> Stream:
    settings = StreamConfig(weights=WeightConfig(beta=0.5), **config)
    source = Source(folder, settings, cutoff=5.0, levels_of_theory=["PBE"])
    return Stream(source, rank=rank, world_size=world_size)


def raw_scan(folder: Path) -> int:
    """Read every row group of every shard; structures read."""
    rows = 0
    for path in shard_paths(folder, "train"):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows += file.read_row_group(group, use_threads=False).num_rows
    return rows


def streamed(stream: Stream) -> int:
    """Take every structure of an epoch, decoded, copied by weight and shuffled; their number."""
    return sum(1 for window in range(stream.windows_per_epoch) for _ in stream.window(window))


def rate(action: Callable[[], int]) -> float:
    """Structures per CPU second."""
    started = time.process_time()
    return action() / (time.process_time() - started)


def throughput(folder: Path) -> dict:
    stream = open_stream(folder)
    raw = []
    ours = []
    for _ in track(range(ROUNDS), "scan and stream"):
        raw.append(rate(lambda: raw_scan(folder)))
        ours.append(rate(lambda: streamed(stream)))
    ratios = [b / a for a, b in zip(raw, ours, strict=True)]
    return {
        "raw_scan_structures_per_cpu_second": raw,
        "stream_structures_per_cpu_second": ours,
        "median_ratio": float(np.median(ratios)),
    }


def resume_seconds(folder: Path) -> dict:
    """Wall seconds to the first batch of a fresh stream and of one resumed deep in the epoch."""
    stream = open_stream(folder)
    half = stream.windows_per_epoch // 2
    for window in range(half):
        stream.progress.finish(window)
    next(stream.batches())
    state = json.loads(json.dumps(stream.state()))
    started = time.perf_counter()
    resumed = open_stream(folder)
    resumed.load_state([state])
    next(resumed.batches())
    resumed_after = time.perf_counter() - started
    started = time.perf_counter()
    next(open_stream(folder).batches())
    fresh = time.perf_counter() - started
    return {
        "resumed": resumed_after,
        "fresh": fresh,
        "state_bytes": len(json.dumps(state)),
        "at_window": half,
    }


def packing(number: int = 2000, edge_budget: int = 40_000, ranks: int = 4) -> dict:
    """Fill of batches over sizes of 1 to 200 atoms, and the spread of edges over ranks."""
    edges: list[list[int]] = []
    for rank in range(ranks):
        chosen = islice(synthetic(number, (1, 200)), rank, None, ranks)
        graphs = (Batch.from_structure(s, 5.0) for s in chosen)
        config = StreamConfig()
        edges.append(
            [
                sum(g.num_edges for g in b)
                for b in pack(graphs, edge_budget, 100_000, config.look_ahead)
            ]
        )
    steps = min(map(len, edges))
    table = np.array(
        [own[: steps - 1] for own in edges]
    )  # the last batch of a rank is what was left
    return {
        "edge_budget": edge_budget,
        "mean_fill": float(table.mean() / edge_budget),
        "largest_batch_over_budget": float(max(map(max, edges)) / edge_budget),
        "mean_spread_in_a_step": float(((table.max(0) - table.min(0)) / table.mean(0)).mean()),
        "spread_in_all": float((table.sum(1).max() - table.sum(1).min()) / table.sum(1).mean()),
        "ranks": ranks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=100_000)
    number = parser.parse_args().structures
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        made = track(synthetic(number), "making structures", total=number)
        write_data_set(made, folder, {"file": "synthetic", "sha256": ""}, ConvertConfig())
        result = {
            "command": f"python {' '.join(sys.argv)}",
            "machine": {
                "platform": platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            },
            "structures": number,
            "throughput": throughput(folder),
            "first_batch_seconds": resume_seconds(folder),
            "packing": packing(),
        }
    out = Path(__file__).parent / "results" / "stream_throughput.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
