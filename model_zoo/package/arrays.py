"""NumPy arrays as the bytes of a safetensors file, whatever their memory layout.

`safetensors.numpy` writes the memory of an array without looking at its strides. A transposed array
would come back with its numbers in the wrong places, and an array with a negative stride would come
back with numbers from neighbouring memory. `safetensors.torch` refuses both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save


def arrays_file(arrays: Mapping[str, np.ndarray], facts: str) -> bytes:
    """The content of a safetensors file. Its metadata hold `facts` under the key `evenfield`."""
    in_order = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(in_order, metadata={"evenfield": facts})
