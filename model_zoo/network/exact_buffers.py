"""Constants that stay float64 when a model is converted to another dtype."""

from __future__ import annotations

from typing import Any

from torch import nn


class ExactBuffers(nn.Module):
    """A module whose float buffers move between devices but are never rounded.

    Without this class, `model.float().double()` would leave constants rounded to float32. They
    break equivariance at 1e-7 and shift reference energies of 1e4 eV by meV. Cast the buffers to
    the working dtype at the point of use. A submodule must be an ExactBuffers too to be protected.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> ExactBuffers:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)

        # `_apply` may have changed both device and dtype; keep only the change of device
        for name, buffer in exact.items():
            device = self._buffers[name].device  # type: ignore[union-attr]
            self._buffers[name] = buffer.to(device)
        return self
