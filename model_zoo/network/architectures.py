"""The registry of networks, with one line for each.

Modules are imported on first use, because some networks need packages that take seconds to import.
The config class of a network lives in a separate module, so settings can be read without those
packages.
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

# models stored before networks had tags all use this one
DEFAULT_ARCHITECTURE = "gaunt"


def config_class(architecture: str) -> type[NetworkConfig]:
    """The config class of a network, by its tag.

    Raises ValueError for an unknown tag; pydantic turns it into a validation error.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"architecture: unknown network {architecture!r}: choose one of {known}")
    path, _ = ARCHITECTURES[architecture]
    found: type[NetworkConfig] = _imported(path)
    return found


def build_network(config: NetworkConfig, num_neighbours: float) -> Network:
    """Build a network with random weights.

    `num_neighbours` is the mean number of neighbours in the training data.
    """
    _, path = ARCHITECTURES[config.architecture]
    network_class: type[Network] = _imported(path)
    return network_class(config, num_neighbours)


def _imported(path: str) -> Any:
    module_name, _, class_name = path.partition(":")
    return getattr(import_module(f".{module_name}", __package__), class_name)
