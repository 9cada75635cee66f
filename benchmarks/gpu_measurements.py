"""Training steps and inference of one device: speed and memory by batch size, width and precision.

    python benchmarks/gpu_measurements.py OUT.json [--minutes 8] [--quick]

Meant for a GPU, and run by `gpu_day.sh`; on a CPU it measures that, and says so. Structures are
rattled rock salt with made-up labels, so that nothing needs to be at hand.

- Training: a step of AdamW with energies, forces and stress; of 32, 64 and 128 channels, eager and
  compiled, float32 and bfloat16, float32 with TF32 products as well; batches grow fourfold until
  memory or time is out.
- Inference: energy, forces and stress of one crystal by the calculator, neighbour lists included;
  eager and compiled, growing fourfold likewise.

OUT.json is written after each figure, and a run that is repeated adds what is missing. Seconds are
the median of steps after a warm-up. Each combination has its error in the result if it fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from evenfield import model_zoo
from evenfield.core.ranks import local_device
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.compile.compiled import compile_for_training
from evenfield.model_zoo.compile.padded_shape import PaddedShape
from evenfield.pretrain.loop.loss import label_counts
from evenfield.pretrain.loop.train_module import TrainModule


CHANNELS = (32, 64, 128)
# (compiled, precision of the products)
WAYS = (
    (False, "float32"),
    (False, "tf32"),
    (False, "bfloat16"),
    (True, "float32"),
    (True, "tf32"),
    (True, "bfloat16"),
)
# atoms of a batch and of a crystal
SIZES = (64, 216, 1000, 4096, 13824, 32768)
LEVEL = "made up"
LARGEST_TURN = 60.0  # seconds; a larger size is not tried after a slower one
STEPS = 8


def rock_salt(num_atoms: int, seed: int = 0) -> Atoms:
    """A cube of about `num_atoms` ions, rattled by 0.1 A."""
    repeats = max(1, round((num_atoms / 8) ** (1 / 3)))
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeats)
    atoms.rattle(0.1, seed=seed)
    return atoms


def batch_of(num_atoms: int, cutoff: float) -> Batch:
    """Crystals of 64 ions with labels drawn at random, `num_atoms` in all."""
    rng = np.random.default_rng(0)
    parts = []
    for seed in range(max(1, num_atoms // 64)):
        atoms = rock_salt(64, seed)
        labels = {
            "energy": -3.4 * len(atoms) + rng.normal(),
            "forces": rng.normal(0, 0.5, (len(atoms), 3)),
            "stress": np.zeros((3, 3)),
        }
        structure = Structure.from_atoms(atoms, LEVEL, str(seed), **labels)
        parts.append(Batch.from_structure(structure, cutoff, [LEVEL]))
    return Batch.join(parts)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, after one that is not counted."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    # the first one compiles, or takes memory from the device
    timed()
    samples = [timed()]
    while len(samples) < STEPS and sum(samples) < LARGEST_TURN:
        samples.append(timed())
    return statistics.median(samples)


def peak_memory(device: torch.device) -> float | None:
    """Most memory that was used since the last call, GiB; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


def training(
    channels: int, compiled: bool, precision: str, num_atoms: int, device: torch.device
) -> dict[str, Any]:
    """One combination of a training."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    config = PotentialConfig(channels=channels, num_neighbours=18.0, levels_of_theory=[LEVEL])
    potential = Potential(config).to(device).train()
    batch = batch_of(num_atoms, config.cutoff)
    if compiled:
        _, tiles = potential.edge_vectors(batch.to(device))
        shape = PaddedShape(batch.num_atoms, len(tiles.receiver), tiles.size)
        compile_for_training(potential, shape)
    module = TrainModule(potential, precision="bfloat16" if precision == "bfloat16" else "float32")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    counts = label_counts(batch)
    batch = batch.to(device)

    def step() -> None:
        optimizer.zero_grad()
        module(batch, lambda: counts).backward()
        optimizer.step()

    peak_memory(device)
    seconds = seconds_of(step, device)
    return {
        "seconds": seconds,
        "edges": batch.num_edges,
        "edges_per_second": round(batch.num_edges / seconds),
        "atoms_per_second": round(batch.num_atoms / seconds),
        "gib": peak_memory(device),
    }


def inference(compiled: bool, precision: str, num_atoms: int, device: torch.device) -> Any:
    """One combination of calls of the shipped model, each on positions of its own."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    model = model_zoo.load("evenfield-1")
    atoms = rock_salt(num_atoms)
    atoms.calc = model.calculator(
        level_of_theory="mp_pbe", device=str(device), compiled=compiled, warn_outside=False
    )
    moves = itertools.count()

    def call() -> None:
        atoms.positions[0, 0] += 1e-3 * (-1) ** next(moves)
        atoms.get_forces()
        atoms.get_stress()

    peak_memory(device)
    seconds = seconds_of(call, device)
    return {
        "seconds": seconds,
        "milliseconds_per_atom": 1000 * seconds / len(atoms),
        "gib": peak_memory(device),
    }


def combinations(quick: bool) -> Iterator[tuple[str, Callable[[int, torch.device], Any]]]:
    """Everything that is measured, the most telling first: its name, and what measures a size."""
    channels = (32,) if quick else CHANNELS
    ways = ((False, "float32"), (True, "float32")) if quick else WAYS

    for compiled, precision in ways:
        if precision != "bfloat16":
            how = "compiled" if compiled else "eager"
            yield (
                f"inference, {how}, {precision}",
                lambda n, d, c=compiled, p=precision: inference(c, p, n, d),
            )
        for width in channels:
            how = "compiled" if compiled else "eager"
            yield (
                f"training, {width} channels, {how}, {precision}",
                lambda n, d, w=width, c=compiled, p=precision: training(w, c, p, n, d),
            )


def facts(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    found = {
        "device": "cpu",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "model": model_zoo.load("evenfield-1").reference,
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"device": about.name, "gib": round(about.total_memory / 2**30, 1)}
    return found


def main() -> None:
    """Measure until the time is out, and write each figure at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun after these")
    parser.add_argument("--quick", action="store_true", help="two sizes of each, to see it work")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    device = local_device()
    if device.type != "cuda":
        torch.set_num_threads(1)
    result: dict[str, Any] = {"facts": facts(device), "figures": {}}
    if options.out.is_file():
        result["figures"] = json.loads(options.out.read_text())["figures"]

    sizes = SIZES[:2] if options.quick else SIZES
    for name, measure in combinations(options.quick):
        found = result["figures"].setdefault(name, {})
        for num_atoms in sizes:
            if str(num_atoms) in found:
                continue
            if time.monotonic() > until:
                print("the time is out; the same command goes on")
                return
            try:
                found[str(num_atoms)] = measure(num_atoms, device)
            except Exception as error:
                # a figure that cannot be had is a finding, and the others are worth having
                found[str(num_atoms)] = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(f"{name}, {num_atoms} atoms: {found[str(num_atoms)]}", flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            if device.type == "cuda":
                torch.cuda.empty_cache()
            took = found[str(num_atoms)].get("seconds", LARGEST_TURN)
            if took * STEPS >= LARGEST_TURN:
                break


if __name__ == "__main__":
    main()
