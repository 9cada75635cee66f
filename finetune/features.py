"""Frozen features of structures, for your own fits; `property_heads` fits and stores heads."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase import Atoms

from ..model_zoo.heads.features import atom_features
from ..model_zoo.hub.load import LoadedModel


def structure_features(model: LoadedModel, frames: Iterable[Atoms]) -> np.ndarray:
    """Features (S, d) of S structures, averaged over the atoms of each structure.

    They are the input of the readout: rotationally invariant and independent of the level of
    theory.
    """
    found = atom_features(model.potential, frames, "readout")
    return np.array([features.mean(axis=0) for features in found])
