"""What `compute.compiled` gives on a real stream: eager and compiled steps, in turn.

    python benchmarks/compiled_training.py DATA [--channels 32] [--batches 60] [--edge-budget 6000]

DATA is a converted set. Both sides take the stream's first batches: forward, loss of energy and
forces, backward. Writes results/compiled_training_cCHANNELS.json: processor seconds of both sides,
their ratio, the share of batches that went the compiled way, the frame, the wall seconds of
compiling, and by how much the gradients of both differ from those in float64: the largest relative
difference of a parameter's, median and maximum over the first batches.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from evenfield.data_pipelines.batch import Batch
from evenfield.model_zoo.compile.compiled import compile_for_training
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.checkpoints.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.loss import label_counts, weighted_loss
from evenfield.pretrain.streams import open_stream, padded_shape_of


COMPARED = 20  # batches whose gradients are compared with those in float64
RESULTS = Path(__file__).resolve().parent / "results"


def step(potential: Potential, batch: Batch, config: PretrainConfig) -> tuple[float, list[Tensor]]:
    """Processor seconds of one loss and its gradients, and these."""
    potential.zero_grad()
    started = time.process_time()
    loss = weighted_loss(potential(batch), batch, label_counts(batch), config.loss)
    loss.backward()
    seconds = time.process_time() - started
    return seconds, [p.grad.clone() for p in potential.parameters() if p.grad is not None]


def in_double(batch: Batch) -> Batch:
    """The batch with labels in float64, as a potential in float64 wants them."""
    labels = {name: value.double() for name, value in batch.labels.items()}
    return dataclasses.replace(batch, labels=labels, atom_weight=batch.atom_weight.double())


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of a gradient, by norms."""
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-12))
        for a, b in zip(found, expected, strict=True)
    )


def measure(config: PretrainConfig, number: int) -> dict[str, Any]:
    data = config.open_data()
    seed_everything(0)
    plain = build_potential(config, data).train()
    levels = plain.config.levels_of_theory
    frame = padded_shape_of(config, data, levels)
    if frame is None:
        raise SystemExit(
            "these batches differ too much in size for a frame: compiling would not pay"
        )
    compiled = copy.deepcopy(plain)
    held = compile_for_training(compiled, frame)
    stream = open_stream(config, data, levels, rank=0, world_size=1).batches()
    batches = list(islice(stream, number))
    stream.close()
    sizes = [compiled.edge_vectors(batch)[1] for batch in batches]
    fits = [frame.fits(b.num_atoms, tiles) for b, tiles in zip(batches, sizes, strict=True)]
    started = time.perf_counter()
    step(compiled, batches[fits.index(True)], config)
    compiling = time.perf_counter() - started
    exact = copy.deepcopy(plain).double()
    sides = {"plain": plain, "compiled": compiled}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    errors: dict[str, list[float]] = {name: [] for name in sides}
    for place, batch in enumerate(track(batches, "steps", transient=True)):
        reference = step(exact, in_double(batch), config)[1] if place < COMPARED else None
        for name, potential in sides.items():
            took, gradients = step(potential, batch, config)
            seconds[name].append(took)
            if reference:
                errors[name].append(difference(gradients, reference))
    assert not held.failed
    return {
        "ratio": sum(seconds["plain"]) / sum(seconds["compiled"]),
        "median_ratio": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "share_compiled": sum(fits) / len(fits),
        "frame": vars(frame),
        "seconds_to_compile": compiling,
        "differences_from_float64": {
            name: [statistics.median(e), max(e)] for name, e in errors.items()
        },
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--edge-budget", type=int, default=6000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig.model_validate(
        {
            "data": options.data,
            "out": "none",
            "model": {"channels": options.channels},
            "stream": {"edge_budget": options.edge_budget},
        }
    )
    report = {"channels": options.channels, "edge_budget": options.edge_budget} | measure(
        config, options.batches
    )
    print({key: value for key, value in report.items() if key != "seconds"})
    (RESULTS / f"compiled_training_c{options.channels}.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
