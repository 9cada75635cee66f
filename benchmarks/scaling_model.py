"""The step-time model of docs/scaling.md: its tables and its check.

    python benchmarks/scaling_model.py

t(n) = t_compute + t_reduce(n) + 2 t_flags(n) + t_outside, each explained in docs/scaling.md. Prints
Markdown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

from evenfield.model_zoo.potential.config import PotentialConfig
from evenfield.model_zoo.potential.potential import Potential


MEASURED = Path(__file__).resolve().parent / "results" / "parallel_step.json"
EDGES = 60_000  # of a rank's batch
EDGES_PER_STRUCTURE = 1_500  # 30 atoms with 50 neighbours
COST_SPREAD = (
    0.079 / 10**0.5
)  # of a batch's cost, results/step_balance.json, over ten times as many structures
DATA_SET = 100_000_000  # structures


@dataclass(frozen=True)
class Machine:
    """Assumed, not measured."""

    edges_per_s: float = (
        1.2e6  # of one GPU in training with 128 channels; with others in inverse proportion
    )
    bandwidth: float = 20e9  # bytes/s of one GPU between nodes
    hop: float = 20e-6  # s, GPU to GPU between nodes
    tcp_hop: float = 60e-6  # s, processor to processor over TCP
    outside: float = 0.02  # of a step


def step_seconds(
    num_ranks: int, channels: int, num_parameters: int, machine: Machine
) -> dict[str, float]:
    """Seconds of the parts of a step."""
    compute = EDGES / machine.edges_per_s * channels / 128
    rounds = 2 * ceil(log2(num_ranks)) if num_ranks > 1 else 0
    volume = 2 * (num_ranks - 1) / num_ranks * 4 * num_parameters
    parts = {
        "compute": compute,
        "straggler": compute * COST_SPREAD * (2 * log2(num_ranks) * 0.693) ** 0.5
        if num_ranks > 1
        else 0.0,
        "reduce": volume / machine.bandwidth + rounds * machine.hop,
        "flags": 2 * rounds * machine.tcp_hop,
        "outside": machine.outside * compute,
    }
    return parts | {"step": sum(parts.values())}


def num_parameters(channels: int) -> int:
    """Of a model with one level of theory, trainable."""
    return sum(
        p.numel()
        for p in Potential(PotentialConfig(channels=channels)).parameters()
        if p.requires_grad
    )


def check() -> list[str]:
    """Efficiency at two ranks, from the parts at one rank and the reduction at two."""
    measured = json.loads(MEASURED.read_text())
    one = measured["1 rank"]
    two = measured["2 ranks"]
    step_two = 1.0 / (1.0 - (two["share_reduce_clip_update"] - one["share_reduce_clip_update"]))
    return [
        f"time outside, of a step: {one['share_outside']:.1%} at one rank, "
        f"{two['share_outside']:.1%} at two",
        f"reduction, of a step at two ranks: {1 - 1 / step_two:.1%}, "
        f"so the model says {1 / step_two:.1%} efficiency",
        f"measured efficiency: {measured['efficiency of 2 ranks by wall time'][0]:.1%} "
        f"by wall time, "
        f"{measured['efficiency of 2 ranks by cpu time'][0]:.1%} by processor time",
    ]


def table(channels: int, machine: Machine) -> list[str]:
    """Markdown rows for growing numbers of GPUs."""
    parameters = num_parameters(channels)
    single = step_seconds(1, channels, parameters, machine)["step"]
    rows = [
        f"{channels} channels, {parameters / 1e6:.2f} M parameters, {EDGES:,} edges a rank:",
        "",
        "| GPUs | step, ms | reduce | flags | straggler | efficiency | structures a step "
        "| hours an epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ranks in (1, 8, 64, 256, 1024):
        parts = step_seconds(ranks, channels, parameters, machine)
        per_step = ranks * EDGES / EDGES_PER_STRUCTURE
        hours = DATA_SET / per_step * parts["step"] / 3600
        rows.append(
            f"| {ranks:,} | {1e3 * parts['step']:.1f} | {1e3 * parts['reduce']:.2f} "
            f"| {1e3 * parts['flags']:.1f} | {1e3 * parts['straggler']:.2f} "
            f"| {single / parts['step']:.0%} | {per_step:,.0f} | {hours:,.2f} |"
        )
    return rows


def main() -> None:
    lines = [*(f"- {line}" for line in check()), ""]
    for channels in (128, 512):
        lines += [*table(channels, Machine()), ""]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
