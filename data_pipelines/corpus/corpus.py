"""Build a corpus: convert several sources to one data set, with a record of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.addresses import local_path
from ..convert.convert import NamedSource, convert_sources
from ..sources.locations import is_url
from .card import data_card
from .config import CorpusConfig, CorpusSource
from .licences import needs_attribution, refusal, together


def build_corpus(
    config: CorpusConfig,
    out: Path | str,
    *,
    folder: Path | str = ".",
    workers: int | None = None,
    task: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Convert the sources of a corpus into the folder `out`.

    Returns the content of dataset_info.json, or None if `task` is given. If a build is interrupted,
    the same call continues it.

    folder: folder to which the relative file names of sources refer.
    workers, task, overwrite: as in `convert`.

    Raises the same errors as `convert`; they name the source.
    """
    sources = [
        NamedSource(_place(source, folder), source, name) for name, source in config.sources.items()
    ]
    # defaults are left out, so that new settings in a later version do not change the identity
    identity = {
        "file": config.name,
        "config": config.model_dump(mode="json", exclude_defaults=True),
    }
    about = {
        "licence": together([source.licence for source in config.sources.values()]),
        "description": config.description,
        "publishable": not config.refusals(),
        "level_details": config.level_details,
        "sources": [_entry(name, source) for name, source in config.sources.items()],
    }
    return convert_sources(
        sources,
        out,
        identity,
        about,
        card=data_card,
        workers=workers,
        task=task,
        overwrite=overwrite,
    )


def _place(source: CorpusSource, folder: Path | str) -> str:
    if source.hub is not None:
        return source.hub
    assert source.files is not None, "the config has one of the two"
    if is_url(source.files):
        return source.files
    # joining does not change an absolute path
    return str(local_path(folder) / local_path(source.files))


def _entry(name: str, source: CorpusSource) -> dict[str, Any]:
    """The entry of a source in dataset_info.json, without its hash and counts."""
    return {
        "name": name,
        "files": source.files or source.hub,
        "description": _one_line(source.description),
        "licence": source.licence,
        "citation": source.citation and _one_line(source.citation),
        "url": source.url,
        "known_faults": _one_line(source.known_faults),
        "attribution": needs_attribution(source.licence),
        "publishable": refusal(source.licence) is None,
    }


def _one_line(text: str) -> str:
    """Join a text to one line, for a cell of a table."""
    return " ".join(text.split())
