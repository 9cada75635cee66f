"""What goes wrong when a model is used in another program."""

from __future__ import annotations

from ...core.errors import EvenfieldError


class EngineError(EvenfieldError):
    """An option or a structure that a model cannot be used with."""


class UnseenElementError(EngineError):
    """A structure with elements that the level of theory never saw in training."""
