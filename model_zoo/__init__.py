"""Backbone, readout, potential; save and load; hub; ASE calculator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .calculator import EvenfieldCalculator
    from .hub import LoadedModel, load
    from .metatomic_export import export_metatomic
    from .package import BadModelError, ModelRecord, load_model, save_model
    from .potential import Potential, PotentialConfig
    from .publishing import publish

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
    "EvenfieldCalculator": "calculator",
    **dict.fromkeys(("LoadedModel", "load"), "hub"),
    **dict.fromkeys(("BadModelError", "ModelRecord", "load_model", "save_model"), "package"),
    **dict.fromkeys(("Potential", "PotentialConfig"), "potential"),
    "export_metatomic": "metatomic_export",
    "publish": "publishing",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `evenfield --help` needs none of it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
