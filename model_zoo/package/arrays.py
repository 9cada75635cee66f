"""Arrays of NumPy as the bytes of a safetensors file, whatever their order in memory.

The library writes the memory of an array as it lies there: a transposed array comes back with its
numbers in other places, and one with a negative stride with those of a neighbour. Its counterpart
for torch refuses both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save


def arrays_file(arrays: Mapping[str, np.ndarray], facts: str) -> bytes:
    """The content of a safetensors file. `facts` are the text under `evenfield` in its metadata."""
    in_order = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(in_order, metadata={"evenfield": facts})
