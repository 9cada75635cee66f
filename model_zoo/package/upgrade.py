"""Models of older formats become models of the current one, step by step.

The models under tests/model_zoo/package/old_formats must load for good. A change that would break
them raises FORMAT_VERSION and adds a step here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .manifest import FORMAT_VERSION


Config = dict[str, Any]
Tensors = dict[str, Tensor]


def _from_1(config: Config, tensors: Tensors) -> None:
    """Format 2 states sizes in the manifest and repeats the architecture in each file of weights.

    Neither is part of the config or of the tensors, so nothing changes here.
    """


def _from_2(config: Config, tensors: Tensors) -> None:
    """Format 3 has radial factors on angles only where `angular_factors` asks for them.

    Before, every model had them.
    """
    architecture = config.get("architecture")
    # anything but an object is refused later, when a model is built from it
    if isinstance(architecture, dict):
        config["architecture"] = architecture | {"angular_factors": True}


# format -> step that changes config and tensors, in place, into those of the next format
UPGRADES: dict[int, Callable[[Config, Tensors], None]] = {1: _from_1, 2: _from_2}


def upgrade(config: Config, tensors: Tensors) -> None:
    """Bring config and tensors of any known format to FORMAT_VERSION, in place."""
    for version in range(config["format_version"], FORMAT_VERSION):
        UPGRADES[version](config, tensors)
        config["format_version"] = version + 1
