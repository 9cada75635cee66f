"""Settings of `strategy=auto`."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class AutoConfig(Settings):
    """How long `strategy=auto` may look for the best strategy."""

    minutes: float = Field(
        default=15.0,
        ge=0,
        description="most minutes of training for candidates of strategy=auto; one that would take "
        "longer is left out, and 0 leaves the refits in closed form",
    )
