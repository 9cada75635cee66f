"""Named models, built with the recipes of the project.

model_zoo/zoo/shipped/NAME   comes with the package, works offline
CACHE/zoo/NAME               built on this machine by `evenfield zoo build NAME`
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.files import file_errors
from ..hub.remote import HubError, cache_folder
from ..package.folder import folder_revision
from ..package.manifest import MANIFEST


SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class ZooModel:
    """A named model and a one-line description."""

    name: str
    about: str


ZOO = {
    model.name: model
    for model in (
        ZooModel(
            "evenfield-1",
            "96 elements, DFT at 17 levels of theory, comes with the package: the one to start "
            "from",
        ),
        ZooModel(
            "evenfield-s",
            "small and fast, comes with the package: for trying things out and for tests",
        ),
        ZooModel("evenfield-m", "more data, twice the channels; built by one command"),
    )
}


def names() -> list[str]:
    """The names of all models, whether or not they are on this machine."""
    return sorted(ZOO)


def is_zoo_name(reference: str) -> bool:
    """Whether a reference, with or without a revision, names a zoo model."""
    return reference.partition("@")[0] in ZOO


def folder_of(name: str) -> Path | None:
    """The folder of a model on this machine; None if it is not here.

    A model built here takes precedence over a shipped one.
    """
    # A user who built a model wants that one, which may be newer. An unreadable cache must not hide
    # a shipped model.
    built = cache_folder() / "zoo" / name
    with suppress(OSError):
        if (built / MANIFEST).is_file():
            return built

    shipped = SHIPPED / name
    with file_errors(shipped):
        return shipped if (shipped / MANIFEST).is_file() else None


def find(reference: str) -> Path:
    """The folder of `NAME[@revision]`.

    Raises HubError, with the command that builds the model, if it is not on this machine.
    """
    name, _, revision = reference.partition("@")
    folder = folder_of(name)
    if folder is None:
        raise HubError(
            "is not on this machine yet",
            file=name,
            remedy=f"build it with `evenfield zoo build {name}`",
        )
    if not revision or folder_revision(folder) == revision:
        return folder

    # a model built here may hide the shipped one with this revision
    shipped = SHIPPED / name
    if (shipped / MANIFEST).is_file() and folder_revision(shipped) == revision:
        return shipped
    raise HubError(
        f"this machine has revision {folder_revision(folder)}",
        file=reference,
        remedy="ask for that one, or install the version of evenfield that had the other",
    )
