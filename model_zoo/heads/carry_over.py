"""Which heads stay valid after the weights of their model have changed.

A head is linear in features and stays valid as long as the features do not change. A closed-form
refit changes only the last weights of the readout, reference energies and core radii, and features
do not depend on these. Gradient training changes all features. A head with its own network reads
only that network, so it stays valid as long as the architecture is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from ..potential.potential import Potential
from .head import Head


# the readout layer whose outputs are features
HIDDEN = ("readout.hidden.weight", "readout.hidden.bias")


def heads_carried_over(
    heads: Mapping[str, Head], before: Potential, after: Potential
) -> dict[str, Head]:
    """The heads of `before` that are valid for `after`, adapted to it.

    The features that a head reads must be equal bit for bit. If the readout has grown, its new
    features get zero weights. Vectors of elements that a head was fitted without may differ,
    because the head refuses structures with these elements.
    """
    state = after.state_dict()
    own = before.state_dict()
    same_network = (
        before.config.network == after.config.network
        and before.config.num_neighbours == after.config.num_neighbours
    )
    kept: dict[str, Head] = {}
    for name, head in heads.items():
        if head.own is not None and same_network:
            kept[name] = head
            continue
        if not same_network or not _same_backbone(head, before, after):
            continue
        if head.description.features == "readout":
            size = before.config.readout_size
            more = after.config.readout_size - size
            # a narrower layer has fewer rows and compares as unequal
            if not all(_equal(own[row], state[row][:size]) for row in HIDDEN):
                continue
            head = _padded(head, more)
        kept[name] = head
    return kept


def _same_backbone(head: Head, before: Potential, after: Potential) -> bool:
    """Whether both networks give the same features for structures of a head's elements."""
    numbers = [atomic_numbers[symbol] for symbol in head.description.elements]
    own = dict(before.backbone.named_parameters()) | dict(before.backbone.named_buffers())
    others = dict(after.backbone.named_parameters()) | dict(after.backbone.named_buffers())
    if own.keys() != others.keys():
        return False
    for name, tensor in own.items():
        other = others[name]
        if tensor is before.backbone.element_vectors:
            tensor = tensor[numbers]
            other = other[numbers]
        if not _equal(tensor, other):
            return False
    return True


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.detach().cpu(), other.detach().cpu())


def _padded(head: Head, more: int) -> Head:
    """The head with zero weights for `more` additional features."""
    spread = head.spread_weight
    return replace(
        head,
        weight=np.pad(head.weight, ((0, 0), (0, more))),
        spread_weight=None if spread is None else np.pad(spread, (0, more)),
    )
