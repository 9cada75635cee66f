"""What uncertainties cost: calls of the calculator with and without, interleaved.

    python benchmarks/uncertainty_cost.py MODEL [--calls 9] [--keep-freed-memory] [--out FILE.json]

MODEL has a record of its uncertainty. Rocksalt of 64 and 512 atoms moves by 0.01 A a call, as in
dynamics. Processor seconds of one thread; the ratio is the median of those of pairs of calls. With
--keep-freed-memory, memory is kept as `evenfield simulate` keeps it. The same ratios for the
network alone are those of two backward passes in turn, and of both as one batched pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from evenfield.core.freed_memory import keep_freed_memory
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import LoadedModel, load


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

        def move(atoms: Atoms = atoms, rng: np.random.Generator = rng) -> None:
            atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)

        ways = {
            "plain": partial(plain.calculate, atoms),
            "judged": partial(judged.calculate, atoms),
        }
        spent = seconds_in_turn(ways, arguments.calls, move)
        seconds = spent["plain"]
        ratios = [
            with_it / without for with_it, without in zip(spent["judged"], seconds, strict=True)
        ]
        result[f"{len(atoms)} atoms"] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            "plain_ms": round(1000 * statistics.median(seconds), 1),
            "network": ways_of_two_passes(model, atoms, arguments.calls),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def seconds_in_turn(
    ways: Mapping[str, Callable[[], object]], calls: int, move: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Way -> processor seconds of each of its calls; `move` goes before each turn of all ways."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(calls + 1):
        if move is not None:
            move()
        # there and back, so that a machine that slows down slows all ways down
        order = list(ways) if call % 2 else list(ways)[::-1]
        for name in order:
            started = time.process_time()
            ways[name]()
            seconds = time.process_time() - started
            # the first call searches neighbours and fills caches
            if call:
                spent[name].append(seconds)
    return spent


def ways_of_two_passes(model: LoadedModel, atoms: Atoms, calls: int) -> dict[str, float]:
    """Way -> time over that of one backward pass, each with a forward pass; gradients are equal."""
    potential = model.potential.eval()
    level = model.level_to_use()
    levels = potential.config.levels_of_theory
    structure = Structure.from_atoms(atoms, level, "cost")
    dtype = potential.readout.weight.dtype
    batch = Batch.from_structure(structure, potential.config.cutoff, levels, dtype)
    edges, tiles = potential.edge_vectors(batch)
    head = batch.head[batch.structure_index]
    direction = torch.as_tensor(model.uncertainties[level].directions[0]).to(dtype)

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        vectors = edges.detach().requires_grad_()
        energies, hidden = potential.interaction(batch.atomic_numbers, head, vectors, tiles)
        return vectors, energies, hidden

    def one() -> list[Tensor]:
        vectors, energies, _ = forward()
        return list(torch.autograd.grad(energies.sum(), vectors))

    def in_turn() -> list[Tensor]:
        vectors, energies, hidden = forward()
        phi = potential.readout.activation(hidden)
        (first,) = torch.autograd.grad(energies.sum(), vectors, retain_graph=True)
        (second,) = torch.autograd.grad(phi, vectors, direction.expand_as(phi))
        return [first, second]

    def batched() -> list[Tensor]:
        vectors, energies, hidden = forward()
        (of_energy,) = torch.autograd.grad(energies.sum(), hidden, retain_graph=True)
        leaf = hidden.detach().requires_grad_()
        phi = potential.readout.activation(leaf)
        (of_direction,) = torch.autograd.grad(phi, leaf, direction.expand_as(phi))
        both = torch.stack([of_energy, of_direction])
        (found,) = torch.autograd.grad(hidden, vectors, both, is_grads_batched=True)
        return list(found)

    for expected, found in zip(in_turn(), batched(), strict=True):
        torch.testing.assert_close(found, expected)
    ways = {"one pass": one, "two in turn": in_turn, "two in a batch": batched}
    spent = seconds_in_turn(ways, calls)
    ratios = {}
    for name in ("two in turn", "two in a batch"):
        pairs = zip(spent[name], spent["one pass"], strict=True)
        ratios[name] = round(statistics.median(two / one for two, one in pairs), 3)
    return ratios


if __name__ == "__main__":
    main()
