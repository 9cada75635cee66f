"""Upgrade models of older formats to the current one, step by step.

The models under tests/model_zoo/package/old_formats must always load. A change that would break
them increases FORMAT_VERSION and adds a step here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .manifest import FORMAT_VERSION


Config = dict[str, Any]
Tensors = dict[str, Tensor]


def _from_1(config: Config, tensors: Tensors) -> None:
    """Upgrade format 1 to 2, which changes neither config nor tensors.

    Format 2 states file sizes in the manifest and repeats the architecture in each file of weights.
    """


def _from_2(config: Config, tensors: Tensors) -> None:
    """Upgrade format 2 to 3, which makes angular factors optional.

    Before format 3, every model had them, so `angular_factors` is set.
    """
    architecture = config.get("architecture")
    # anything but an object is refused later, when the model is built
    if isinstance(architecture, dict):
        config["architecture"] = architecture | {"angular_factors": True}


# format -> step that changes config and tensors, in place, to the next format
UPGRADES: dict[int, Callable[[Config, Tensors], None]] = {1: _from_1, 2: _from_2}


def upgrade(config: Config, tensors: Tensors) -> None:
    """Upgrade config and tensors of any known format to FORMAT_VERSION, in place."""
    for version in range(config["format_version"], FORMAT_VERSION):
        UPGRADES[version](config, tensors)
        config["format_version"] = version + 1
