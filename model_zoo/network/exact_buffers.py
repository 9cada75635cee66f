"""Constants that keep float64 whatever dtype a model is moved to."""

from __future__ import annotations

from typing import Any

from torch import nn


class ExactBuffers(nn.Module):
    """A module whose own float buffers move between devices but are never rounded.

    `model.float().double()` would else leave float32 constants behind, which break equivariance at 1e-7, and
    reference energies of 1e4 eV that are off by meV. Cast them where they are used.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> ExactBuffers:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self
