"""What goes wrong with physics beside a model."""

from __future__ import annotations

from ...core.errors import EvenfieldError


class PhysicsError(EvenfieldError):
    """A structure, data set or model that its physics does not fit."""
