"""Constants that keep float64 whatever dtype a model is moved to."""

from __future__ import annotations

from typing import Any

from torch import nn


class ExactBuffers(nn.Module):
    """A module whose own float buffers move between devices but are never rounded.

    Otherwise `model.float().double()` would leave float32 constants behind. These break
    equivariance at 1e-7, and put reference energies of 1e4 eV off by meV. Cast the buffers where
    they are used.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> ExactBuffers:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)

        # `_apply` may have changed the device as well: take that from it, but not the dtype
        for name, buffer in exact.items():
            device = self._buffers[name].device  # type: ignore[union-attr]
            self._buffers[name] = buffer.to(device)
        return self
