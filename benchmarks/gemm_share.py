"""How near a compiled training step comes to the machine's rate of large matrix products.

    python benchmarks/gemm_share.py [--channels 32 64 128] [--rounds 15]

128 copper atoms, one thread. In every round the step's gradients, the optimizer's step and a
product of 1024 x 1024 take turns, in CPU seconds. FLOPs are those of the matrix products that
`evenfield model cost` counts, without padding and optimizer. Writes results/gemm_share.json:
medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark_structures import copper
from evenfield_worker import compile_training, forward_of, make_batch, own_optimizer
from rich.progress import track
from worker_protocol import Labels, keep_freed_memory, seconds_of

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.cost.cost import per_atom_and_edge


RESULT = Path(__file__).resolve().parent / "results" / "gemm_share.json"
SIZE = 1024  # of the large product


def measure(channels: int, rounds: int) -> dict[str, float]:
    """FLOP/s of the large product and of the step, with and without the optimizer."""
    structures = copper()
    batch = make_batch(structures, 5.0)
    labels = Labels(structures)
    torch.manual_seed(0)
    config = PotentialConfig(channels=channels, num_neighbours=batch.num_edges / batch.num_atoms)
    potential = Potential(config).train()
    compile_training(potential, batch)
    forward = forward_of(potential, batch)
    optimizer = own_optimizer(potential)
    matrix = torch.randn(SIZE, SIZE)

    def gradients() -> None:
        optimizer.zero_grad()
        labels.loss(*forward()).backward()

    calls: dict[str, tuple[Callable[[], object], int]] = {
        "gradients": (gradients, 3),
        "optimizer": (optimizer.step, 10),  # one look at the eigenvectors
        "product": (lambda: matrix @ matrix, 5),
    }
    for call, _ in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, times) in calls.items():
            spent[name].append(seconds_of(call, times))
    seconds = {name: statistics.median(values) for name, values in spent.items()}
    atom, edge = per_atom_and_edge(config, torch.float32, training=True)
    flops = batch.num_atoms * atom.flops + batch.num_edges * edge.flops
    rate = 2 * SIZE**3 / seconds["product"]
    return {
        "GFLOP of a step": flops / 1e9,
        "seconds of gradients": seconds["gradients"],
        "seconds of the optimizer": seconds["optimizer"],
        "GFLOP/s of a large product": rate / 1e9,
        "share of that rate, gradients": flops / seconds["gradients"] / rate,
        "share of that rate, whole step": flops
        / (seconds["gradients"] + seconds["optimizer"])
        / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    each = track(options.channels, "sizes")
    result = {f"{channels} channels": measure(channels, options.rounds) for channels in each}
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
