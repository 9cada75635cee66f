"""`evenfield model cost`: the cost of a model of a given size, before it is trained."""

from __future__ import annotations

import math
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
    """Makes `model` a command group, although it has only one command so far."""


@app.command()
def cost(
    overrides: Overrides = None,
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="of parameters and tensors")
    ] = "float32",
    neighbours: Annotated[
        float, typer.Option(help="neighbours of an atom within the cutoff")
    ] = 40.0,
    atoms: Annotated[
        int, typer.Option(min=1, help="atoms of a crystal; learned charges alone depend on it")
    ] = 64,
    memory: Annotated[
        float | None, typer.Option(help="GB of the device; default: this machine's")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="also measure this machine's rates")
    ] = False,
    show_settings: Annotated[
        bool, settings_option("model_zoo.potential.config:PotentialConfig")
    ] = False,
) -> None:
    """Parameters, FLOPs, traffic and memory per atom and edge; largest batch.

    Only the operations are counted: the network runs on tensors without data. The largest batch is
    that of a training step on the device.

    With learned charges, each atom of a crystal interacts with all reciprocal-space waves of its
    structure. Their number grows with the size of the crystal, which --atoms states; its volume
    follows from --neighbours.

    Examples:
    evenfield model cost
    evenfield model cost charges=true --atoms 256
    evenfield model cost channels=128 l_max=2 --memory 80 --measure
    """
    import os

    import torch

    from ...core.rich_console import Console
    from ...core.settings import load_settings
    from ..potential.config import PotentialConfig
    from ..potential.potential import Potential
    from .cost import of_charges, per_atom_and_edge

    config = load_settings(PotentialConfig, None, overrides)
    torch_dtype = getattr(torch, dtype)
    costs = {
        "inference": per_atom_and_edge(config, torch_dtype, training=False),
        "training": per_atom_and_edge(config, torch_dtype, training=True),
    }
    # volume per atom, if a sphere with the cutoff as radius holds `neighbours` atoms
    volume = 4 / 3 * math.pi * config.cutoff**3 / neighbours
    charges = {
        name: of_charges(config, torch_dtype, atoms, volume, training=name == "training")
        for name in costs
        if config.charges
    }
    num_parameters = sum(parameter.numel() for parameter in Potential(config).parameters())
    console = Console()
    console.print(_table(costs, neighbours, charges, atoms))

    bytes_per_number = torch.finfo(torch_dtype).bits // 8
    # weights, gradients, and the six tensors that SOAP keeps for a square matrix
    fixed_bytes = 8 * num_parameters * bytes_per_number
    console.print(
        f"{num_parameters:,} parameters; with gradients and SOAP's state about "
        f"{fixed_bytes / 1e6:.1f} MB"
    )

    total_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if memory:
        total_bytes = 1e9 * memory
    atom, edge = costs["training"]
    of_atom = atom.memory + (charges["training"].memory if charges else 0.0)
    edges = (total_bytes - fixed_bytes) / (edge.memory + of_atom / neighbours)
    console.print(
        f"a training step in {total_bytes / 1e9:.0f} GB takes at most {edges:,.0f} edges at once,"
    )
    console.print("if no memory is lost between tensors")

    if measure:
        for name, (atom, edge) in costs.items():
            whole = _whole(atom, edge, neighbours, charges.get(name))
            console.print(f"{name}: {_roofline(whole, torch_dtype)}")


def _whole(atom: Cost, edge: Cost, neighbours: float, charges: Cost | None) -> Cost:
    """The cost of an atom with its edges and its charge."""
    from .cost import Cost

    of_charges = (0.0, 0.0, 0.0) if charges is None else astuple(charges)
    parts = zip(astuple(atom), astuple(edge), of_charges, strict=True)
    return Cost(*(own + neighbours * of_edge + charge for own, of_edge, charge in parts))


def _table(
    costs: dict[str, tuple[Cost, Cost]], neighbours: float, charges: dict[str, Cost], atoms: int
) -> Table:
    from rich.table import Table

    table = Table("", "MFLOP", "MB moved", "kB at the peak", "FLOP per byte")
    for name, (atom, edge) in costs.items():
        own = charges.get(name)
        rows = {"an atom without its edges": astuple(atom), "an edge": astuple(edge)}
        if own is not None:
            rows[f"the charge of an atom among {atoms}"] = astuple(own)
        with_charge = " and its charge" if own is not None else ""
        whole = astuple(_whole(atom, edge, neighbours, own))
        rows[f"an atom with {neighbours:g} edges{with_charge}"] = whole
        for what, (flops, traffic, memory) in rows.items():
            table.add_row(
                f"{name}: {what}",
                f"{flops / 1e6:.3f}",
                f"{traffic / 1e6:.3f}",
                f"{memory / 1e3:.1f}",
                f"{flops / traffic:.1f}",
            )
    return table


def _roofline(whole: Cost, dtype: torch.dtype) -> str:
    """A line on whether matrix products or memory traffic limit the speed on this machine."""
    product_rate, memory_rate = machine_rates(dtype)
    product_seconds = whole.flops / product_rate
    memory_seconds = whole.traffic / memory_rate
    bound = "memory, unless a cache holds the batch"
    if product_seconds > memory_seconds:
        bound = "the matrix products"
    return (
        f"per atom {1e6 * product_seconds:.0f} us of products at {product_rate / 1e9:.0f} GFLOP/s "
        f"and {1e6 * memory_seconds:.0f} us of memory traffic at {memory_rate / 1e9:.0f} GB/s: "
        f"bound by {bound}"
    )


def machine_rates(dtype: torch.dtype, seconds: float = 0.5) -> tuple[float, float]:
    """Measure FLOP/s of a large matrix product, and bytes/s read and written by an addition.

    Both use the number of threads that torch is set to.
    """
    import torch

    square = torch.ones(1024, 1024, dtype=dtype)
    long = torch.ones(1 << 24, dtype=dtype)

    def rate(work: Callable[[], object], amount: float) -> float:
        """The best rate of all calls within `seconds`; at least one call is made."""
        best = 0.0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not best:
            start = time.perf_counter()
            work()
            best = max(best, amount / (time.perf_counter() - start))
        return best

    product_rate = rate(lambda: square @ square, 2 * 1024**3)
    memory_rate = rate(lambda: long.add_(1), 2 * long.numel() * long.element_size())
    return product_rate, memory_rate
