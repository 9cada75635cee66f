"""The error that analytic physics raises."""

from __future__ import annotations

from ...core.errors import EvenfieldError


class PhysicsError(EvenfieldError):
    """Physics that does not fit a structure, a data set or a model."""
