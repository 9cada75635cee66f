"""Errors of models in other programs."""

from __future__ import annotations

from ...core.errors import EvenfieldError


class EngineError(EvenfieldError):
    """A model cannot be used with this option or structure."""


class UnseenElementError(EngineError):
    """A structure contains elements that the level of theory was not trained on."""
