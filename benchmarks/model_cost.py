"""`evenfield model cost` compared with the profiler and the memory of one real step.

    python benchmarks/model_cost.py

For every size of model a fresh process runs a small step and then a large one on fcc copper; the
growth of its peak resident memory between the two is set against the count for the same atoms and
edge slots. glibc returns every large block as soon as it is freed, so that the system counts
what is alive; as it comes, its heap holds up to half as much again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch
from benchmark_structures import copper
from evenfield_worker import make_batch
from torch.profiler import ProfilerActivity, profile

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.cost.cost import per_atom_and_edge


RESULT = Path(__file__).resolve().parent / "results" / "model_cost.json"
SIZES = (
    {"channels": 32},
    {"channels": 64},
    {"channels": 128},
    {"channels": 64, "l_max": 2},
    {"channels": 32, "l_hidden": 2, "num_layers": 3},
)


def measured(size: dict[str, int]) -> dict[str, float]:
    """FLOPs of an inference and bytes of a training step of 1,024 atoms, counted and measured."""
    torch.manual_seed(0)
    config = PotentialConfig(**size)
    potential = Potential(config)
    small, large = (make_batch(copper()[:1] * number, config.cutoff) for number in (1, 8))

    def peak_of_step(batch) -> float:
        potential.train()
        out = potential(batch)
        torch.autograd.grad(
            out.energy.sum() + out.forces.square().sum(),
            list(potential.parameters()),
            allow_unused=True,
        )
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak_of_step(small)
    grown = peak_of_step(large) - before
    with profile(
        activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True
    ) as profiler:
        potential.eval()(large)
    products = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
    flops = sum(event.flops for event in profiler.key_averages() if event.key in products)
    slots = [len(potential.edge_vectors(batch)[1].sender) for batch in (small, large)]
    atom, edge = per_atom_and_edge(config, torch.float32, training=True)
    atom_once, edge_once = per_atom_and_edge(config, torch.float32, training=False)
    more_atoms = large.num_atoms - small.num_atoms
    more_slots = slots[1] - slots[0]
    return {
        "flops_measured": flops,
        "flops_counted": atom_once.flops * large.num_atoms + edge_once.flops * slots[1],
        "memory_measured": grown,
        "memory_counted": atom.memory * more_atoms + edge.memory * more_slots,
    }


def main() -> None:
    """Measure all sizes and write results/model_cost.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=json.loads, help="one size, in this process")
    size = parser.parse_args().size
    if size is not None:
        print(json.dumps(measured(size)))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--size", json.dumps(size)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
        row = {"size": size, **json.loads(answer.splitlines()[-1])}
        for what in ("flops", "memory"):
            row[f"{what}_ratio"] = row[f"{what}_counted"] / row[f"{what}_measured"]
        print(
            {key: value for key, value in row.items() if key == "size" or key.endswith("ratio")},
            flush=True,
        )
        rows.append(row)
    RESULT.write_text(
        json.dumps({"command": "python benchmarks/model_cost.py", "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
