"""The list of networks: one line each.

Modules are imported when they are asked for, since some networks need packages that take seconds to
import. The config has a module of its own, so settings can be read without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .interface import Network, NetworkConfig


# tag -> config class and network class, each as "module:class" inside this folder
ARCHITECTURES = {
    "gaunt": ("gaunt.config:GauntConfig", "gaunt.network:GauntNetwork"),
    "schnet": ("schnet.config:SchNetConfig", "schnet.network:SchNet"),
}

# models that were stored before networks had tags are all of this one
DEFAULT_ARCHITECTURE = "gaunt"


def config_class(architecture: str) -> type[NetworkConfig]:
    """The config class with a tag. Raises ValueError, for pydantic, if no network has that tag."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"architecture: unknown network {architecture!r}: choose one of {known}")
    path, _ = ARCHITECTURES[architecture]
    found: type[NetworkConfig] = _imported(path)
    return found


def build_network(config: NetworkConfig, num_neighbours: float) -> Network:
    """A network with random weights. `num_neighbours` is the mean in the training data."""
    _, path = ARCHITECTURES[config.architecture]
    network_class: type[Network] = _imported(path)
    return network_class(config, num_neighbours)


def _imported(path: str) -> Any:
    module_name, _, class_name = path.partition(":")
    return getattr(import_module(f".{module_name}", __package__), class_name)
