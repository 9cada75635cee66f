"""Backbone, readout, potential; save and load; hub; ASE calculator."""

from .calculator import EvenfieldCalculator
from .hub import LoadedModel, load, publish
from .package import BadModelError, ModelRecord, load_model, save_model
from .potential import Potential, PotentialConfig


__all__ = [
    "BadModelError",
    "EvenfieldCalculator",
    "LoadedModel",
    "ModelRecord",
    "Potential",
    "PotentialConfig",
    "load",
    "load_model",
    "publish",
    "save_model",
]
