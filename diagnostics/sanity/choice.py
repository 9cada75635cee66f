"""Which systems a check looks at: built-in ones, or those of the user."""

from __future__ import annotations

from collections.abc import Collection

from .config import SanityConfig
from .own_structures import systems_of_file
from .systems import SYSTEMS, System


def chosen_systems(
    settings: SanityConfig, symbols: list[str], built_in: Collection[System] | None = None
) -> tuple[list[System], list[str]]:
    """The systems to look at, and the names of those with an element that is not in `symbols`.

    They are the structures of the settings if these name a file, else `built_in`, by default those
    of the suite. Raises CheckError and SourceError for a file with structures that cannot be used.
    """
    wanted: Collection[System]
    if settings.structures is not None:
        wanted = systems_of_file(settings.structures)
    elif built_in is not None:
        wanted = built_in
    else:
        wanted = [each for each in SYSTEMS if each.is_quick or settings.suite != "quick"]

    known = set(settings.chosen(symbols))
    judged = [each for each in wanted if set(each.atoms().symbols) <= known]
    skipped = [each.name for each in wanted if each not in judged]
    return judged, skipped
