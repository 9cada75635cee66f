"""Convert weights to safetensors bytes and back.

The bytes depend only on the weights and the architecture, so hashes are stable. Reading is strict:
everything that does not fit the architecture in config.json is refused.
"""

from __future__ import annotations

import json
import math
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...core.errors import EvenfieldError
from ..potential.config import PotentialConfig
from ..potential.potential import Potential
from .manifest import FORMAT_VERSION, MANIFEST, RESTORE, BadModelError


# an interrupted download loses at most one shard
MAX_SHARD_BYTES = 1 << 30
MAX_FAULTS_SHOWN = 8
# Far above any current model. These limits apply before any content is verified.
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 10_000
MAX_WEIGHTS_OF_FORMAT_1 = 1 << 26
# Trained weights are below 100. Much larger numbers would overflow in products.
MAX_WEIGHT = 1e6
# eV; an all-electron atom of element 118 has -1.5e6
MAX_REFERENCE_ENERGY = 1e8


class UnusableWeightsError(EvenfieldError):
    """Weights are not finite, or larger than any training produces."""


def weight_files(potential: Potential, max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, bytes]:
    """All weights and buffers as file name -> bytes, in shards of at most `max_shard_bytes`.

    A larger tensor is put into a separate shard. Each file has a single metadata key, because
    safetensors writes several keys in random order, which would change the hash.

    Raises UnusableWeightsError for numbers that `put_weights` would refuse on reading.
    """
    refuse_unusable_weights(potential)
    tensors = {}
    # sorted, because the order in which tensors are registered is not part of the model
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


def refuse_unusable_weights(potential: Potential) -> None:
    """Raise UnusableWeightsError for numbers that `put_weights` would refuse."""
    for name, tensor in potential.state_dict().items():
        fault = _fault_of_numbers(name, tensor)
        if fault is not None:
            raise UnusableWeightsError(
                f"the weights cannot be used, and were not saved: {fault}",
                remedy="train again with a lower learning rate, or look at the labels",
            )


def _shards(tensors: dict[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Fill shards in the given order. Tensors are not split, so a shard may exceed `max_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        is_full = filled + tensor.nbytes > max_bytes
        # an empty shard accepts any tensor, or a very large one would never fit
        if shards[-1] and is_full:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def parse_weights(files: dict[str, bytes], where: str) -> dict[str, Tensor]:
    """Read all tensors of all shards, name -> tensor. `where` is the folder, for messages.

    Raises BadModelError for a file that is not valid safetensors, repeats a tensor, or holds too
    many tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, data in files.items():
        path = f"{where}/{name}"
        _check_header(path, data)
        try:
            part = load(data)
        except (
            # safetensors checks the header, but torch may still fail on what the header promises
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
        if len(tensors) > MAX_TENSORS:
            raise _too_many_tensors(path)
    return tensors


def _check_header(path: str, data: bytes) -> None:
    """Raise BadModelError for a header that would take minutes or gigabytes to read."""
    length = int.from_bytes(data[:8], "little")
    # `load` refuses a header longer than the file, with a better message
    if MAX_HEADER_BYTES < length <= len(data):
        raise BadModelError(
            f"has a header of {length:,} bytes, {MAX_HEADER_BYTES:,} are allowed",
            file=path,
            remedy=RESTORE,
        )
    # every tensor has this key; counting the text needs no parsing
    if data.count(b'"data_offsets"', 0, 8 + length) > MAX_TENSORS:
        raise _too_many_tensors(path)


def _too_many_tensors(path: str) -> BadModelError:
    return BadModelError(f"holds more than {MAX_TENSORS:,} tensors", file=path, remedy=RESTORE)


def check_same_architecture(files: dict[str, bytes], where: str, architecture: Any) -> None:
    """Raise BadModelError if a shard was saved with another architecture than config.json.

    From format 2 on, each shard repeats the architecture. Shapes alone would not reveal a different
    order of heads.
    """
    for name, data in files.items():
        # compared in their saved form, because an upgrade changes only the config
        of_shard = metadata(data).get("architecture")
        if of_shard != architecture:
            raise BadModelError(
                "belongs to another config.json than the one in this folder",
                file=f"{where}/{name}",
                remedy=RESTORE,
            )


def metadata(data: bytes) -> dict[str, Any]:
    """The metadata that evenfield stores in a safetensors file; empty if they cannot be read."""
    # if the length exceeds the file, the header is cut off and is not valid JSON
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        # safetensors metadata values must be strings, so ours is JSON inside JSON
        text = header["__metadata__"]["evenfield"]
        about = json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def put_weights(potential: Potential, tensors: dict[str, Tensor], where: str) -> None:
    """Load `tensors` into `potential`. `where` is the file of weights, for messages.

    Raises BadModelError if a tensor is missing or unexpected, has the wrong shape or dtype, or
    holds numbers that are not finite or larger than any training produces.
    """
    # torch's strict loading checks neither dtypes nor NaN, and its message has many lines
    faults = _faults(potential.state_dict(), tensors)
    if faults:
        first = sorted(faults)[:MAX_FAULTS_SHOWN]
        shown = "; ".join(first)
        hidden = len(faults) - MAX_FAULTS_SHOWN
        more = f"; and {hidden} more" if hidden > 0 else ""
        raise BadModelError(f"does not fit config.json: {shown}{more}", file=where, remedy=RESTORE)
    potential.load_state_dict(tensors, strict=True)


def _faults(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """All differences between `found` and the tensors that the architecture expects."""
    missing = expected.keys() - found.keys()
    unexpected = found.keys() - expected.keys()
    faults = [f"missing {name}" for name in missing]
    # these names are untrusted and may be long
    faults += [f"unexpected {name[:100]}" for name in unexpected]

    common = sorted(expected.keys() & found.keys())
    for name in common:
        wanted = _kind(expected[name])
        given = _kind(found[name])
        if given != wanted:
            faults.append(f"{name} is {given}, not {wanted}")
    if faults:
        return faults

    # numbers are checked last, because they are meaningless if the shape is wrong
    for name in common:
        fault = _fault_of_numbers(name, found[name])
        if fault is not None:
            faults.append(fault)
    return faults


def _fault_of_numbers(name: str, tensor: Tensor) -> str | None:
    """A message if the numbers of a tensor are invalid, else None."""
    if not tensor.numel():
        return None
    limit = MAX_REFERENCE_ENERGY if name == "e0" else MAX_WEIGHT
    # one pass for both checks, because the maximum is NaN if any number is NaN
    largest = tensor.abs().max().item()
    if not math.isfinite(largest):
        return f"{name} holds NaN or infinity"
    if largest > limit:
        return f"{name} holds numbers up to {largest:.1e}, which no training reaches"
    return None


def _kind(tensor: Tensor) -> str:
    """Shape and dtype of a tensor, for messages."""
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def check_size(path: str, config: PotentialConfig, weight_bytes: int | None) -> None:
    """Refuse an architecture that `weight_bytes` cannot fill, before memory is allocated.

    `path` is config.json, for messages. `weight_bytes` is None if the size is not known, because
    manifests of format 1 do not state it. Raises BadModelError.
    """
    needed = config.num_weights
    if weight_bytes is None:
        if needed > MAX_WEIGHTS_OF_FORMAT_1:
            raise BadModelError(
                f"asks for {needed:,} weights, and {MANIFEST} states no sizes",
                file=path,
                remedy=RESTORE,
            )
        return
    # A number takes at least 4 bytes, and an older format may hold half of the upgraded weights.
    if 2 * needed > weight_bytes:
        raise BadModelError(
            f"asks for {needed:,} weights, far more weights than the {weight_bytes:,} bytes that "
            "are stored can hold",
            file=path,
            remedy=RESTORE,
        )


def one_line(error: Exception, limit: int = 200) -> str:
    """The message of a library's exception, on one line of at most `limit` characters."""
    # such messages may contain line breaks and parts of a malicious file
    text = " ".join(str(error).split())
    return text[:limit] or type(error).__name__
