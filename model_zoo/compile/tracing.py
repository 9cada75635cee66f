"""Trace a function of the network to a graph of aten operations, for torch.compile and TorchScript.

The numbers of atoms and tiles stay symbolic, so one graph serves structures of any size.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ...core.errors import EvenfieldError


# Sizes of the example inputs. Tracing identifies equal sizes as the same symbol, so these are
# primes that no other dimension has.
EXAMPLE_ATOMS = 1009
EXAMPLE_TILES = 1013

# Python functions that TorchScript supports by name
SCRIPTABLE = (operator.getitem, operator.mul, operator.floordiv, operator.add, operator.sub)

# Arguments that fix where and how a tensor is stored. Without them, results follow their inputs.
PLACEMENT = ("device", "layout", "pin_memory")


class UnscriptableError(EvenfieldError):
    """A network uses an operation that TorchScript cannot run."""


def trace(function: Callable[..., Any], like: Tensor, tile_size: int) -> GraphModule:
    """Trace a function of (atomic numbers, heads, vectors, senders, receivers).

    The inputs have the shapes (N,), (N,), (tiles * T, 3), (tiles * T,) and (tiles,). The number T
    of slots per tile is fixed to `tile_size`. Vectors have the dtype of `like`, and all inputs are
    on its device.
    """
    atoms = like.new_zeros(EXAMPLE_ATOMS, dtype=torch.long)
    slots = like.new_zeros(EXAMPLE_TILES * tile_size, dtype=torch.long)
    vectors = like.new_zeros(len(slots), 3)
    example = (atoms, atoms.clone(), vectors, slots, slots[:EXAMPLE_TILES].clone())
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)

    for node in graph.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            # Compilers may choose another memory layout than the traced one, for which some views
            # are impossible.
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.detach.default:
            # Tracing a derivative detaches saved tensors. A second derivative would lose their
            # terms.
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def scripted(graph: GraphModule) -> torch.jit.ScriptModule:
    """Compile a traced graph with TorchScript.

    The result can be differentiated, saved and moved between devices. The graph is modified. Raises
    UnscriptableError for an operation that TorchScript does not support.
    """
    _constants_to_buffers(graph)
    for node in graph.graph.nodes:
        # type annotations refer to names that TorchScript cannot resolve; they are not needed
        node.type = None
        if node.op == "call_function":
            node.target = _without_overload(node.target)
            node.kwargs = {k: v for k, v in node.kwargs.items() if k not in PLACEMENT}
    graph.recompile()

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The TorchScript type system"
        )  # about a class of torch.fx
        return torch.jit.script(graph)


def _constants_to_buffers(graph: GraphModule) -> None:
    """Register the constants of a graph as buffers, so that they move with the module's device."""
    new_names: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        if node.target not in new_names:
            new_name = f"constant{len(new_names)}"
            new_names[node.target] = new_name
            tensor = getattr(graph, node.target).detach().clone()
            delattr(graph, node.target)
            graph.register_buffer(new_name, tensor)
        node.target = new_names[node.target]


def _without_overload(target: Any) -> Any:
    """The operation without its overload. TorchScript chooses the overload by the arguments."""
    if target is torch.ops.aten.sym_size.int:
        return torch.ops.aten.size
    if target is torch.ops.aten.sym_numel.default:
        return torch.ops.aten.numel
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket
    if target in SCRIPTABLE:
        return target
    raise UnscriptableError(
        f"the network uses {target}, which TorchScript cannot run",
        remedy="use the model through ASE or torch-sim instead",
    )
