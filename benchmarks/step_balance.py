"""How evenly a step falls on ranks: the cost of an atom and of an edge.

    python benchmarks/step_balance.py DATA [--steps 80] [--ranks 8]

DATA is a converted set; default model and batches, one thread. Seconds of forward and backward of a
batch are fitted by least squares to its atoms and its edges; with these costs the batches that the
stream gives to 2 to 8 ranks are weighed. A step takes as long as its heaviest rank. Writes
results/step_balance.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch

from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.stream import Stream
from evenfield.pretrain.checkpoints.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.loss import LossConfig, label_counts, weighted_loss


WARM_UP = 5
RESULT = Path(__file__).resolve().parent / "results" / "step_balance.json"


def fitted_costs(config: PretrainConfig, data: Collection, steps: int) -> np.ndarray:
    """Processor seconds of an atom and of an edge; edges vary too little to fit a constant too."""
    potential = build_potential(config, data).train()
    data_set = Source(
        data.folders[0],
        config.stream,
        cutoff=config.model.cutoff,
        levels_of_theory=potential.config.levels_of_theory,
    )
    stream = Stream(data_set)
    source = stream.batches()
    batches = list(itertools.islice(source, steps + WARM_UP))
    source.close()
    rows = []
    for batch in batches:
        potential.zero_grad()
        started = time.process_time()
        weighted_loss(potential(batch), batch, label_counts(batch), LossConfig()).backward()
        rows.append((time.process_time() - started, batch.num_atoms, batch.num_edges))
    table = np.array(rows[WARM_UP:])
    usual = table[:, 0] < np.quantile(table[:, 0], 0.9)  # the rest was disturbed
    return np.linalg.lstsq(table[usual, 1:], table[usual, 0], rcond=None)[0]


def batches_of_ranks(
    config: PretrainConfig, data: Collection, steps: int, ranks: int
) -> np.ndarray:
    """Atoms and edges of each rank's batches, (steps, ranks, 2)."""
    levels = list(data.census()["levels_of_theory"])
    sizes = []
    for rank in range(ranks):
        data_set = Source(
            data.folders[0], config.stream, cutoff=config.model.cutoff, levels_of_theory=levels
        )
        stream = Stream(data_set, rank=rank, world_size=ranks)
        source = stream.batches()
        sizes.append(
            [(batch.num_atoms, batch.num_edges) for batch in itertools.islice(source, steps)]
        )
        source.close()
    return np.array(sizes).transpose(1, 0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--ranks", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig(data=arguments.data, out="none")
    data = Collection([arguments.data])
    seed_everything(0)
    costs = fitted_costs(config, data, arguments.steps)
    sizes = batches_of_ranks(config, data, arguments.steps, arguments.ranks)
    seconds = sizes @ costs  # (steps, ranks)
    result = {
        "command": f"python benchmarks/step_balance.py DATA --steps {arguments.steps} "
        f"--ranks {arguments.ranks}",
        "date": time.strftime("%Y-%m-%d"),
        "ms an atom, an edge": [float(f"{1000 * cost:.3g}") for cost in costs],
        "spread between batches, of the mean": {
            name: round(float(values.std() / values.mean()), 4)
            for name, values in (
                ("atoms", sizes[..., 0]),
                ("edges", sizes[..., 1]),
                ("cost", seconds),
            )
        },
        "cost of the heaviest rank over the mean": {
            str(n): round(float(seconds[:, :n].max(1).mean() / seconds[:, :n].mean()), 4)
            for n in (2, 4, 8)
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
