"""Which systems a check simulates: built-in ones, or the user's own structures."""

from __future__ import annotations

from collections.abc import Collection

from .config import SanityConfig
from .own_structures import systems_of_file
from .systems import SYSTEMS, System


def chosen_systems(
    settings: SanityConfig, symbols: list[str], built_in: Collection[System] | None = None
) -> tuple[list[System], list[str]]:
    """The systems to simulate, and the names of skipped systems, which have unknown elements.

    The systems come from the file in `settings.structures` if there is one. Otherwise they are
    `built_in`, or by default the systems of the suite. `symbols` are the elements that the
    calculator knows.

    Raises CheckError for structures that cannot be simulated, and SourceError if the file cannot be
    read.
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
