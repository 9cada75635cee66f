"""A function of the network as a graph of aten operations: what torch.compile and TorchScript take.

The numbers of atoms and tiles stay symbols: one graph serves structures of any size.
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


def trace(function: Callable[..., Any], like: Tensor, tile_size: int) -> GraphModule:
    """The graph of a function of (z, head, vectors, sender, receiver), with the dtype and device of `like`.

    Shapes (N,), (N,), (tiles * T, 3), (tiles * T,), (tiles,), with the size T of a tile fixed.
    """
    # sizes that no other dimension has, for tracing takes equal sizes for one and the same
    atoms, num_tiles = 1009, 1013
    whole = like.new_zeros(atoms, dtype=torch.long)
    slots = like.new_zeros(num_tiles * tile_size, dtype=torch.long)
    example = (
        whole,
        whole.clone(),
        like.new_zeros(len(slots), 3),
        slots,
        slots[:num_tiles].clone(),
    )
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    for node in graph.graph.nodes:
        # who runs the graph lays some tensors out in another order, in which not every view of the traced ones is one
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.detach.default:
            # tracing a derivative detaches what its formulas saved: a second derivative would lose those terms
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def scripted(graph: GraphModule) -> torch.jit.ScriptModule:
    """A traced graph, compiled by TorchScript; it can be differentiated, saved and moved between devices.

    Raises ValueError for an operation that TorchScript does not know by name.
    """
    constants: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target not in constants:
            constants[node.target] = f"constant{len(constants)}"
    for (
        name,
        new,
    ) in constants.items():  # as buffers, for a module takes only those along to another device
        tensor = getattr(graph, name).detach().clone()
        delattr(graph, name)
        graph.register_buffer(new, tensor)
    for node in graph.graph.nodes:
        node.type = (
            None  # annotations are written with names of this process; all are tensors and numbers
        )
        if node.op == "get_attr":
            node.target = constants[node.target]
        elif node.op == "call_function":
            node.target = _packet(node.target)
            # they say where and how the traced tensors lay; without them a result lies where its input does
            node.kwargs = {
                k: v for k, v in node.kwargs.items() if k not in ("device", "layout", "pin_memory")
            }
    graph.recompile()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The TorchScript type system")  # of fx's own class
        return torch.jit.script(graph)


def _packet(target: Any) -> Any:
    """The operation without its overload, which TorchScript chooses by the arguments."""
    if target is torch.ops.aten.sym_size.int:
        return torch.ops.aten.size
    if target is torch.ops.aten.sym_numel.default:
        return torch.ops.aten.numel
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket
    if target in (operator.getitem, operator.mul, operator.floordiv, operator.add, operator.sub):
        return target
    raise ValueError(f"{target}: an operation that TorchScript cannot run")
