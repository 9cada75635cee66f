"""Weights to safetensors bytes and back: stable hashes, shards, and nothing that does not fit the architecture."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..potential.potential import Potential
from .manifest import FORMAT_VERSION, REFETCH, BadModelError


MAX_SHARD_BYTES = 1 << 30  # a broken download costs one shard
# what a config may ask for, so that a bad one fills no memory; far above any model of today
LIMITS: dict[str, float] = {
    "channels": 8192,
    "radial_hidden": 8192,
    "embedding_size": 8192,
    "num_basis": 1024,
}
LIMITS |= {
    "num_layers": 64,
    "correlation": 16,
    "l_hidden": 8,
    "l_max": 8,
    "readout_size": 8192,
    "cutoff": 100.0,
}


def weight_files(potential: Potential, max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, bytes]:
    """File name -> bytes. One metadata key only: several would stand in random order, and the hash with them."""
    tensors = {
        name: t.detach().cpu().contiguous().clone()
        for name, t in sorted(potential.state_dict().items())
    }
    about = {
        "format_version": FORMAT_VERSION,
        "architecture": potential.config.model_dump(mode="json"),
    }
    metadata = {"evenfield": json.dumps(about, sort_keys=True)}
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        return {"model.safetensors": save(tensors, metadata=metadata)}
    names = (f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1))
    return {name: save(shard, metadata=metadata) for name, shard in zip(names, shards, strict=True)}


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """In the order of names, as many to a shard as fit; a tensor is never cut."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def parse_weights(files: dict[str, bytes], where: str) -> dict[str, Tensor]:
    """All tensors of all shards; BadModelError for a file that is no safetensors or repeats a tensor."""
    tensors: dict[str, Tensor] = {}
    for name, data in files.items():
        path = f"{where}/{name}"
        try:
            part = load(data)
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RuntimeError,
        ) as error:
            said = " ".join(str(error).split())[:200]
            raise BadModelError(
                f"{path}: is not a whole safetensors file ({said}): {REFETCH}"
            ) from None
        if twice := tensors.keys() & part.keys():
            raise BadModelError(
                f"{path}: holds {min(twice)}, which another shard has too: {REFETCH}"
            )
        tensors |= part
    return tensors


def check_same_architecture(files: dict[str, bytes], where: str, architecture: Any) -> None:
    """From format 2 on each shard repeats the architecture of config.json: heads in another order must not fit."""
    for name, data in files.items():
        if _metadata(data).get("architecture") != architecture:
            raise BadModelError(
                f"{where}/{name}: belongs to another config.json than the one beside it: {REFETCH}"
            )


def _metadata(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")  # `load` has found the header whole
    try:
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["evenfield"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def put_weights(potential: Potential, tensors: dict[str, Tensor], where: str) -> None:
    """Strict: no tensor missing, unexpected, of another shape or dtype, or with a number that is not finite."""
    own = potential.state_dict()
    wrong = [f"missing {name}" for name in own.keys() - tensors.keys()]
    wrong += [f"unexpected {name[:100]}" for name in tensors.keys() - own.keys()]
    both = sorted(own.keys() & tensors.keys())
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, not {tuple(own[name].shape)} {own[name].dtype}"
        for name in both
        if (own[name].shape, own[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if not wrong:
        wrong = [
            f"{name} holds NaN or infinity"
            for name in both
            if not torch.isfinite(tensors[name]).all()
        ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise BadModelError(
            f"{where}: does not fit config.json: {'; '.join(sorted(wrong)[:8])}{more}: {REFETCH}"
        )
    potential.load_state_dict(tensors, strict=True)


def check_architecture(path: str, architecture: Any, weight_bytes: int | None) -> None:
    """Refuse sizes that no file of `weight_bytes` can fill, before memory is asked for."""
    if not isinstance(architecture, dict):
        raise BadModelError(f"{path}: lacks the architecture: {REFETCH}")
    for key, limit in LIMITS.items():
        value = architecture.get(key, 0)
        if isinstance(value, int | float) and not value <= limit:
            raise BadModelError(
                f"{path}: architecture.{key} is {value}, at most {limit} is allowed: {REFETCH}"
            )
    channels, layers = architecture.get("channels", 0), architecture.get("num_layers", 1)
    if weight_bytes is None or not isinstance(channels, int) or not isinstance(layers, int):
        return
    if (
        channels**2 * layers > 4 * weight_bytes
    ):  # a layer has several matrices of channels x channels, 4 bytes each
        raise BadModelError(
            f"{path}: asks for far more weights than the {weight_bytes:,} bytes there are: {REFETCH}"
        )
