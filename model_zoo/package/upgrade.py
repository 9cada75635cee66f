"""Models of older formats become models of this one: a chain of functions, each from one format to the next.

What is stored under tests/model_zoo/old_formats must load for good: a change that would break it raises
FORMAT_VERSION and adds a step here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .manifest import FORMAT_VERSION


Tensors = dict[str, Tensor]


def _from_1(config: dict[str, Any], tensors: Tensors) -> None:
    """Format 2 states sizes in the manifest and repeats the architecture beside the weights; nothing else changed."""


def _from_2(config: dict[str, Any], tensors: Tensors) -> None:
    """Format 3 has radial factors on angles only where `angular_factors` says so; before, every model had them."""
    architecture = config.get("architecture")
    if isinstance(architecture, dict):  # what is none is refused when a model is built from it
        config["architecture"] = architecture | {"angular_factors": True}


# format -> function that turns config and tensors into those of the next one, in place
UPGRADES: dict[int, Callable[[dict[str, Any], Tensors], None]] = {1: _from_1, 2: _from_2}


def upgrade(config: dict[str, Any], tensors: Tensors) -> None:
    """Bring config.json and weights of any known format to FORMAT_VERSION: `config` and `tensors` are changed."""
    for version in range(config["format_version"], FORMAT_VERSION):
        UPGRADES[version](config, tensors)
        config["format_version"] = version + 1
