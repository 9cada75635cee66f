"""Weights to safetensors bytes and back.

The bytes depend on nothing but the weights and the architecture, so hashes are stable. Reading is
strict: whatever does not fit the architecture of config.json is refused.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..potential.config import PotentialConfig
from ..potential.potential import Potential
from .manifest import FORMAT_VERSION, RESTORE, BadModelError


# a broken download costs at most one shard
MAX_SHARD_BYTES = 1 << 30
MAX_FAULTS_SHOWN = 8


def weight_files(potential: Potential, max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, bytes]:
    """File name -> bytes for all weights and buffers, in shards of at most `max_shard_bytes`.

    Each file has a single metadata key: safetensors writes several in random order, and the hash
    would change with it.
    """
    tensors = {}
    # sorted, because the order of registration is not part of the model
    for name, tensor in sorted(potential.state_dict().items()):
        on_cpu = tensor.detach().cpu().contiguous()
        # a clone: safetensors refuses tensors that share memory
        tensors[name] = on_cpu.clone()

    about = {
        "format_version": FORMAT_VERSION,
        "architecture": potential.config.model_dump(mode="json"),
    }
    metadata = {"evenfield": json.dumps(about, sort_keys=True)}

    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        return {"model.safetensors": save(tensors, metadata=metadata)}
    files = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[name] = save(shard, metadata=metadata)
    return files


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Fill shards in the order of names. No tensor is split, so one may exceed `max_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        is_full = filled + tensor.nbytes > max_bytes
        # an empty shard takes any tensor, else a large one would never find a place
        if shards[-1] and is_full:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def parse_weights(files: dict[str, bytes], where: str) -> dict[str, Tensor]:
    """All tensors of all shards; `where` is the folder, for messages.

    Raises BadModelError for a file that is not safetensors or that repeats a tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, data in files.items():
        path = f"{where}/{name}"
        try:
            part = load(data)
        except (
            # safetensors checks its header, then numpy and torch fail on what the header promised
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RuntimeError,
        ) as error:
            reason = one_line(error)
            raise BadModelError(
                f"is not a whole safetensors file ({reason})", file=path, remedy=RESTORE
            ) from error

        repeated = tensors.keys() & part.keys()
        if repeated:
            raise BadModelError(
                f"holds {min(repeated)}, which another shard holds too", file=path, remedy=RESTORE
            )
        tensors |= part
    return tensors


def check_same_architecture(files: dict[str, bytes], where: str, architecture: Any) -> None:
    """Raise BadModelError if a shard was saved with another architecture than config.json states.

    From format 2 on each shard repeats the architecture. Shapes alone would not reveal heads in
    another order.
    """
    for name, data in files.items():
        # compared as JSON, as both were saved: an upgrade changes the config alone
        of_shard = metadata(data).get("architecture")
        if of_shard != architecture:
            raise BadModelError(
                "belongs to another config.json than the one in this folder",
                file=f"{where}/{name}",
                remedy=RESTORE,
            )


def metadata(data: bytes) -> dict[str, Any]:
    """Our own metadata of a safetensors file; empty when it has none that can be read."""
    # a length beyond the end of the file cuts the header short, which is then no JSON
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        # safetensors allows only texts as metadata, so ours is JSON inside JSON
        text = header["__metadata__"]["evenfield"]
        about = json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def put_weights(potential: Potential, tensors: dict[str, Tensor], where: str) -> None:
    """Load `tensors` into `potential`; `where` is the file of weights, for messages.

    Raises BadModelError if a tensor is missing, unexpected, of another shape or dtype, or not
    finite.
    """
    # torch's own strict loading knows neither dtypes nor NaN, and its message has many lines
    faults = _faults(potential.state_dict(), tensors)
    if faults:
        first = sorted(faults)[:MAX_FAULTS_SHOWN]
        shown = "; ".join(first)
        hidden = len(faults) - MAX_FAULTS_SHOWN
        more = f"; and {hidden} more" if hidden > 0 else ""
        raise BadModelError(f"does not fit config.json: {shown}{more}", file=where, remedy=RESTORE)
    potential.load_state_dict(tensors, strict=True)


def _faults(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Every way in which `found` differs from what the architecture expects."""
    missing = expected.keys() - found.keys()
    unexpected = found.keys() - expected.keys()
    faults = [f"missing {name}" for name in missing]
    # these names come from somebody else's file, and may be long
    faults += [f"unexpected {name[:100]}" for name in unexpected]

    common = sorted(expected.keys() & found.keys())
    for name in common:
        wanted = _kind(expected[name])
        given = _kind(found[name])
        if given != wanted:
            faults.append(f"{name} is {given}, not {wanted}")
    if faults:
        return faults

    # numbers are looked at last: they say nothing about tensors of the wrong shape
    for name in common:
        is_finite = torch.isfinite(found[name]).all()
        if not is_finite:
            faults.append(f"{name} holds NaN or infinity")
    return faults


def _kind(tensor: Tensor) -> str:
    """Shape and dtype, as a message shows them."""
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def check_size(path: str, config: PotentialConfig, weight_bytes: int | None) -> None:
    """Refuse sizes that a file of `weight_bytes` cannot fill, before any memory is allocated.

    The network states a lower bound of its weights. `path` is config.json, for messages.
    `weight_bytes` is None when the size is not known.
    """
    if weight_bytes is None:
        return
    # each number takes 4 bytes; the factor of 16 leaves room, the bound only has to stop nonsense
    if config.network.fewest_weights > 4 * weight_bytes:
        raise BadModelError(
            f"asks for far more weights than the {weight_bytes:,} bytes that are stored",
            file=path,
            remedy=RESTORE,
        )


def one_line(error: Exception, limit: int = 200) -> str:
    """The text of a foreign exception on one line of at most `limit` characters."""
    # messages of libraries may hold line breaks, and parts of a malicious file
    text = " ".join(str(error).split())
    return text[:limit] or type(error).__name__
