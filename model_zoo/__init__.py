"""Backbone, readout, potential; save and load; hub; ASE calculator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .engines.calculator import EvenfieldCalculator
    from .engines.metatomic_export import export_metatomic
    from .hub.load import LoadedModel, load
    from .hub.publish import publish
    from .package.folder import BadModelError, ModelRecord, load_model, save_model
    from .potential.potential import Potential, PotentialConfig

__all__ = [
    "BadModelError",
    "EvenfieldCalculator",
    "LoadedModel",
    "ModelRecord",
    "Potential",
    "PotentialConfig",
    "export_metatomic",
    "load",
    "load_model",
    "publish",
    "save_model",
]

_HOME = {
    "EvenfieldCalculator": "engines.calculator",
    **dict.fromkeys(("LoadedModel", "load"), "hub.load"),
    **dict.fromkeys(("BadModelError", "ModelRecord", "load_model", "save_model"), "package.folder"),
    **dict.fromkeys(("Potential", "PotentialConfig"), "potential.potential"),
    "export_metatomic": "engines.metatomic_export",
    "publish": "hub.publish",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `evenfield --help` needs none of it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
