"""How heads are stored, as an attachment of a model folder.

    heads.safetensors   arrays of each head, named INDEX/NAME with INDEX counted from 0: `weight`
                        (K, P) and `bias` (K, Z); with random functions, also `gates`,
                        `gate_biases` and `mixtures`; with a spread, also `spread_weight` and
                        `spread_bias`; with its own network, also `network/...` in float32. The
                        metadata hold the format, the digest of the potential, and the descriptions

Heads multiply the features of the network, so they are valid only for the weights whose digest the
metadata state. Heads for other weights are ignored.

A head with 128 features takes 1 kB plus 8 bytes per element; a class head takes this for each
class. With 1,024 random functions of 128 invariants and 192 vectors, a head takes 3 to 6 MB. A
head's own network takes as much as the network of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from ...core.settings import Settings
from ..package.arrays import arrays_file
from ..package.sanity_record import potential_digest
from ..package.weights import metadata
from ..potential.potential import Potential
from .description import HeadDescription, HeadError
from .expansion import Expansion
from .head import Head
from .rows import num_columns, num_mixtures


HEADS = "heads.safetensors"
EXPANSION = ("gates", "gate_biases", "mixtures")
SPREAD = ("spread_weight", "spread_bias")
# prefix of the array names of a head's own network
NETWORK = "network/"
REMEDY = "fit one with `evenfield finetune head MODEL DATA OUT`"


class _RecordFacts(Settings):
    """The content of the metadata."""

    format: int = Field(ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    heads: list[HeadDescription] = Field(description="one entry for each head")


def heads_file(potential: Potential, heads: Mapping[str, Head]) -> bytes:
    """The content of the attachment for the weights of `potential`."""
    tensors: dict[str, np.ndarray] = {}
    descriptions = []
    for index, head in enumerate(heads.values()):
        tensors[f"{index}/weight"] = head.weight
        tensors[f"{index}/bias"] = head.bias
        if head.expansion is not None:
            for name in EXPANSION:
                tensors[f"{index}/{name}"] = getattr(head.expansion, name)
        if head.description.spread:
            for name in SPREAD:
                tensors[f"{index}/{name}"] = getattr(head, name)
        if head.own is not None:
            for name, weight in head.own.backbone.state_dict().items():
                tensors[f"{index}/{NETWORK}{name}"] = weight.float().cpu().numpy()
        descriptions.append(head.description)
    about = _RecordFacts(format=1, potential=potential_digest(potential), heads=descriptions)
    return arrays_file(tensors, about.model_dump_json())


def heads_of(potential: Potential, attachments: Mapping[str, bytes]) -> dict[str, Head]:
    """The heads of a model by name.

    Attachments have no fixed format, so a file that is not a valid record for these weights is
    ignored.
    """
    content = attachments.get(HEADS)
    if content is None:
        return {}
    try:
        about = _RecordFacts.model_validate(metadata(content))
        if about.potential != potential_digest(potential):
            return {}
        return _heads(potential, about.heads, load(content))
    except (ValidationError, SafetensorError, KeyError, ValueError):
        return {}


def head_named(potential: Potential, attachments: Mapping[str, bytes], name: str) -> Head:
    """The head with this name. Raises HeadError if the model has none for its weights."""
    heads = heads_of(potential, attachments)
    if name in heads:
        return heads[name]
    if heads:
        raise HeadError(f"{name}: the model has no such head", remedy=f"it has {', '.join(heads)}")
    if HEADS in attachments:
        raise HeadError(
            f"{name}: {HEADS} is damaged or belongs to other weights than those of the model",
            remedy=REMEDY,
        )
    raise HeadError(f"{name}: the model has no heads", remedy=REMEDY)


def _heads(
    potential: Potential, descriptions: list[HeadDescription], tensors: dict[str, np.ndarray]
) -> dict[str, Head]:
    """Build heads from their arrays. Raises KeyError or ValueError if arrays do not fit."""
    heads = {}
    num_arrays = 0
    for index, description in enumerate(descriptions):
        arrays = {}
        for name, shape in _shapes(potential, description).items():
            array = tensors[f"{index}/{name}"]
            if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError(f"{name} is no array of {shape} finite numbers")
            arrays[name] = array
        own = None
        if description.trained_steps:
            weights = _network_weights(potential, index, tensors)
            num_arrays += len(weights)
            own = with_network(potential, weights)
        num_arrays += len(arrays)
        weight = arrays.pop("weight")
        bias = arrays.pop("bias")
        spread = {name: arrays.pop(name) for name in SPREAD if name in arrays}
        expansion = Expansion(**arrays) if arrays else None
        heads[description.name] = Head(description, weight, bias, expansion, own=own, **spread)
    if len(heads) != len(descriptions) or len(tensors) != num_arrays:
        raise ValueError("two heads have one name, or an array belongs to none")
    return heads


def with_network(potential: Potential, weights: Mapping[str, torch.Tensor]) -> Potential:
    """A copy of a potential, in evaluation mode, whose network has the given weights."""
    own = copy.deepcopy(potential)
    own.backbone.load_state_dict(weights)
    return own.eval()


def _network_weights(
    potential: Potential, index: int, tensors: dict[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """The network weights of head `index`. Raises KeyError or ValueError if they do not fit."""
    found = {}
    for name, weight in potential.backbone.state_dict().items():
        array = tensors[f"{index}/{NETWORK}{name}"]
        if array.shape != weight.shape or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name} is no array of {tuple(weight.shape)} finite numbers")
        found[name] = torch.from_numpy(array)
    return found


def _shapes(potential: Potential, about: HeadDescription) -> dict[str, tuple[int, ...]]:
    """The expected shapes of a head's arrays, by name."""
    num_elements = len(about.elements)
    num_invariants = potential.backbone.num_features
    if about.features != "equivariant":
        size = potential.config.readout_size if about.features == "readout" else num_invariants
        return {
            "weight": (about.num_outputs, size),
            "bias": (about.num_outputs, num_elements),
            **_shapes_of_spread(about, size),
        }

    num_functions = about.num_functions
    num_vectors, num_tensors = potential.backbone.num_carried
    sizes = (num_invariants, num_vectors, num_tensors)
    return {
        "weight": (1, sum(num_columns(about.kind, sizes, num_functions))),
        "bias": (1, num_elements),
        "gates": (num_functions, num_invariants),
        "gate_biases": (num_functions, num_elements),
        "mixtures": (num_mixtures(about.kind), num_functions, num_vectors),
        **_shapes_of_spread(about, num_invariants),
    }


def _shapes_of_spread(about: HeadDescription, num_invariants: int) -> dict[str, tuple[int, ...]]:
    if not about.spread:
        return {}
    return {"spread_weight": (num_invariants,), "spread_bias": (len(about.elements),)}
