"""Two parts of a layer compared with common replacements, in turn, in CPU seconds.

    python benchmarks/alternatives.py [--channels 64] [--atoms 128] [--rounds 15]

1. The radial network, compared with a table of it: cubic Hermite pieces of one pair of elements.
2. The Clebsch-Gordan contraction as a dense product, compared with a sparse one (CSR).

Each with its derivative, as forces need it. Writes results/alternatives.json: seconds of the
alternative over ours, medians and range; above 1 the alternative is slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenfield.core.freed_memory import keep_freed_memory
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.network.radial import polynomial_envelope


RESULT = Path(__file__).resolve().parent / "results" / "alternatives.json"
NODES = 2048  # of a table
NEIGHBOURS = 45  # of an atom, in one tile
FIRST_NODE = 0.5  # A: no neighbour is nearer
WARM_UP = 2  # rounds that do not count: allocations and first calls


def paired(
    ours: Callable[[], object], other: Callable[[], object], rounds: int
) -> dict[str, float]:
    """Seconds of the other over ours, turn by turn."""
    for _ in range(WARM_UP):
        processor_seconds(ours)
        processor_seconds(other)

    ratios = []
    for _ in range(rounds):
        our_seconds = processor_seconds(ours)
        other_seconds = processor_seconds(other)
        ratios.append(other_seconds / our_seconds)
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def processor_seconds(call: Callable[[], object]) -> float:
    """Of five calls: one alone is too short for the clock."""
    started = time.process_time()
    for _ in range(5):
        call()
    return time.process_time() - started


def with_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Callable[[], Tensor]:
    """A call of the function and of its derivative."""

    def call() -> Tensor:
        x = at.detach().requires_grad_()
        out = function(x)
        (slope,) = torch.autograd.grad(out, x, torch.ones_like(out))
        return slope

    return call


def radial(potential: Potential, atoms: int, rounds: int) -> dict[str, Any]:
    """The second layer's radial network and its table, for copper alone."""
    backbone = potential.backbone
    cutoff = potential.config.cutoff
    network = backbone.layers[1].radial
    elements = backbone.embedding(torch.tensor([29])).detach()

    def ours(distance: Tensor) -> Tensor:
        senders = distance.new_zeros(len(distance)).long()
        receivers = distance.new_zeros(len(distance) // NEIGHBOURS).long()
        envelope = polynomial_envelope(distance / cutoff)
        basis = backbone.bessel(distance)
        weights, _ = network(basis, envelope, elements, senders, receivers, NEIGHBOURS)
        return weights

    step = (cutoff - FIRST_NODE) / (NODES - 1)
    nodes = (FIRST_NODE + step * torch.arange(NODES)).unsqueeze(1)
    # the network works in whole tiles
    padded = torch.cat([nodes, nodes[-1:].expand(-NODES % NEIGHBOURS, 1)])
    values, slopes = torch.autograd.functional.jvp(ours, padded, torch.ones_like(padded))
    # slopes by t, which grows by 1 from node to node
    table = torch.cat([values, step * slopes], 1)[:NODES].detach()

    def tabulated(distance: Tensor) -> Tensor:
        place = (distance - FIRST_NODE) / step
        node = place.detach().long().clamp(0, NODES - 2)
        t = place - node
        low = table.index_select(0, node.squeeze(1))
        high = table.index_select(0, node.squeeze(1) + 1)
        v0, s0 = low.chunk(2, 1)
        v1, s1 = high.chunk(2, 1)

        # the cubic with these values and slopes at both ends, by Horner's rule
        quadratic = 3 * (v1 - v0) - 2 * s0 - s1
        cubic = 2 * (v0 - v1) + s0 + s1
        return v0 + t * (s0 + t * (quadratic + t * cubic))

    # between the nearest neighbours of copper and the cutoff
    distance = 2.0 + 2.9 * torch.rand(atoms * NEIGHBOURS, 1)
    exact = ours(distance)
    largest_error = (exact - tabulated(distance)).abs().max()
    relative_error = largest_error / exact.abs().max()
    ratio = paired(with_slope(ours, distance), with_slope(tabulated, distance), rounds)
    return {
        "seconds of the table over the network's": ratio,
        "largest relative error": float(relative_error),
    }


def coupling(potential: Potential, atoms: int, rounds: int) -> dict[str, Any]:
    """The contraction of the vectors that the second layer is given, dense and sparse."""
    matrix = potential.backbone.layers[1].paths.coupling1.float()
    sparse = matrix.to_sparse_csr()
    transposed = matrix.T.contiguous().to_sparse_csr()
    aggregated = torch.randn(matrix.shape[1], atoms * potential.config.network.channels)

    def dense_call() -> Tensor:
        return matrix.T @ (matrix @ aggregated)  # value and derivative

    def sparse_call() -> Tensor:
        return transposed @ (sparse @ aggregated)

    # a faster product of something else would prove nothing
    torch.testing.assert_close(dense_call(), sparse_call())
    shares = {
        "rows": len(matrix),
        "columns": matrix.shape[1],
        "nonzero": float((matrix != 0).float().mean()),
    }
    return {"seconds of sparse over dense": paired(dense_call, sparse_call, rounds)} | shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--atoms", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    potential = Potential(PotentialConfig(channels=options.channels)).eval().requires_grad_(False)
    result = {
        "command": "python benchmarks/alternatives.py "
        + " ".join(f"--{name} {value}" for name, value in vars(options).items()),
        "tabulated radial functions": radial(potential, options.atoms, options.rounds),
        "sparse Clebsch-Gordan": coupling(potential, options.atoms, options.rounds),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
