"""`evenfield model cost`: what a size of model costs, before anything is trained."""

from __future__ import annotations

import time
from dataclasses import astuple
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...core.command_line import Overrides, settings_option


if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from rich.table import Table

    from .cost import Cost


app = typer.Typer(no_args_is_help=True, help="The architecture: what a size of model costs.")


@app.callback()
def architecture() -> None:
    """A group of its own, though it has one command so far."""


@app.command()
def cost(
    overrides: Overrides = None,
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="of parameters and tensors")
    ] = "float32",
    neighbours: Annotated[
        float, typer.Option(help="neighbours of an atom within the cutoff")
    ] = 40.0,
    memory: Annotated[
        float | None, typer.Option(help="GB of the device; default: this machine's")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="also measure this machine's rates")
    ] = False,
    show_settings: Annotated[
        bool, settings_option("model_zoo.potential.potential:PotentialConfig")
    ] = False,
) -> None:
    """Parameters, FLOPs, bytes and memory per atom and edge, and the largest batch that fits a device.

    Nothing is computed but the count: the network runs on tensors without data.

    Examples:
    evenfield model cost
    evenfield model cost channels=128 l_max=2 --memory 80 --measure
    """
    import os

    import torch
    from rich.console import Console

    from ...core.settings import load_settings
    from ..potential.config import PotentialConfig
    from ..potential.potential import Potential
    from .cost import per_atom_and_edge

    config = load_settings(PotentialConfig, None, overrides)
    kind = getattr(torch, dtype)
    kinds = {
        name: per_atom_and_edge(config, kind, training=name == "training")
        for name in ("inference", "training")
    }
    parameters = sum(p.numel() for p in Potential(config).parameters())
    console = Console()
    console.print(_table(kinds, neighbours))
    size = torch.finfo(kind).bits // 8
    fixed = (
        8 * parameters * size
    )  # weights, gradients and the six tensors that SOAP keeps of a square matrix
    console.print(
        f"{parameters:,} parameters; with gradients and SOAP's state about {fixed / 1e6:.1f} MB"
    )
    total = (
        1e9 * memory if memory else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    )
    atom, edge = kinds["training"]
    edges = (total - fixed) / (edge.memory + atom.memory / neighbours)
    console.print(
        f"a training step in {total / 1e9:.0f} GB takes at most {edges:,.0f} edges at once,"
    )
    console.print("if no memory is lost between tensors")
    if measure:
        for name, costs in kinds.items():
            console.print(f"{name}: {_roofline(*costs, neighbours, kind)}")


def _table(kinds: dict[str, tuple[Cost, Cost]], neighbours: float) -> Table:
    from rich.table import Table

    table = Table("", "MFLOP", "MB moved", "kB at the peak", "FLOP per byte")
    for name, (atom, edge) in kinds.items():
        whole = [a + neighbours * e for a, e in zip(astuple(atom), astuple(edge), strict=True)]
        for what, (flops, traffic, memory) in (
            ("an atom without its edges", astuple(atom)),
            ("an edge", astuple(edge)),
            (f"an atom with {neighbours:g} edges", whole),
        ):
            cells = (
                f"{flops / 1e6:.3f}",
                f"{traffic / 1e6:.3f}",
                f"{memory / 1e3:.1f}",
                f"{flops / traffic:.1f}",
            )
            table.add_row(f"{name}: {what}", *cells)
    return table


def _roofline(atom: Cost, edge: Cost, neighbours: float, dtype: torch.dtype) -> str:
    """Where the model stands between what this machine multiplies and what it moves, one thread each."""
    gemm, copy = machine_rates(dtype)
    flops = (atom.flops + neighbours * edge.flops) / gemm
    traffic = (atom.traffic + neighbours * edge.traffic) / copy
    bound = "the matrix products" if flops > traffic else "memory, unless a cache holds the batch"
    return (
        f"{1e6 * flops:.0f} us an atom of products at {gemm / 1e9:.0f} GFLOP/s, {1e6 * traffic:.0f} us of moving "
        f"{copy / 1e9:.0f} GB/s: bound by {bound}"
    )


def machine_rates(dtype: torch.dtype, seconds: float = 0.5) -> tuple[float, float]:
    """FLOP/s of a large matrix product and bytes/s read and written by an addition in memory, as torch is set up."""
    import torch

    square, long = torch.ones(1024, 1024, dtype=dtype), torch.ones(1 << 24, dtype=dtype)

    def rate(work: Callable[[], object], amount: float) -> float:
        best, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end or not best:
            start = time.perf_counter()
            work()
            best = max(best, amount / (time.perf_counter() - start))
        return best

    return rate(lambda: square @ square, 2 * 1024**3), rate(
        lambda: long.add_(1), 2 * long.numel() * long.element_size()
    )
