"""Models: the network, the potential built on it, and everything done with a trained model.

In: batches of structures, from data_pipelines. Out: energies, forces and stress; and model folders
that can be saved, published, loaded by reference and run in other programs.

- `potential/`   the potential: network, readout, reference energies, core repulsion; start here
- `network/`     the equivariant network;  `compile/` makes it faster
- `evaluation/`  errors on labelled structures;  `cost/` counts operations and memory
- `package/`     the model folder: how a model is stored and read
- `hub/`         load by reference, publish;  `zoo/` lists the named models
- `engines/`     a loaded model in ASE, torch-sim, i-PI and metatomic

The public names below are imported on first use. Importing torch takes seconds, and
`evenfield --help` must be fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .engines.calculator import EvenfieldCalculator
    from .engines.metatomic_export import export_metatomic
    from .hub.load import LoadedModel, load, load_calculator
    from .hub.publish import publish
    from .hub.remote import HubError
    from .package.folder import load_model, save_model
    from .package.manifest import BadModelError
    from .package.record import ModelRecord
    from .potential.config import PotentialConfig
    from .potential.potential import Potential

__all__ = [
    "BadModelError",
    "EvenfieldCalculator",
    "HubError",
    "LoadedModel",
    "ModelRecord",
    "Potential",
    "PotentialConfig",
    "export_metatomic",
    "load",
    "load_calculator",
    "load_model",
    "publish",
    "save_model",
]

# public name -> module that defines it
_HOME = {
    "BadModelError": "package.manifest",
    "EvenfieldCalculator": "engines.calculator",
    "HubError": "hub.remote",
    "LoadedModel": "hub.load",
    "ModelRecord": "package.record",
    "Potential": "potential.potential",
    "PotentialConfig": "potential.config",
    "export_metatomic": "engines.metatomic_export",
    "load": "hub.load",
    "load_calculator": "hub.load",
    "load_model": "package.folder",
    "publish": "hub.publish",
    "save_model": "package.folder",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
