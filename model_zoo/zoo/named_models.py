"""Models with a name of their own: made by the project's recipes, shipped with the package or built here.

model_zoo/zoo/shipped/NAME    comes with the package, works without a network
CACHE/zoo/NAME            made on this machine by `evenfield zoo build NAME`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..hub.remote import cache_folder
from ..package.folder import folder_revision
from ..package.manifest import MANIFEST, BadModelError


SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class ZooModel:
    """One line about a named model."""

    name: str
    about: str


ZOO = {
    model.name: model
    for model in (
        ZooModel(
            "evenfield-s",
            "small and fast, comes with the package: for trying things out and for tests",
        ),
        ZooModel("evenfield-m", "more data, twice the channels; built by one command"),
    )
}


def names() -> list[str]:
    """All names, whether the models are here or not."""
    return sorted(ZOO)


def is_zoo_name(reference: str) -> bool:
    """Whether a reference, with or without a revision, names a model of the zoo."""
    return reference.partition("@")[0] in ZOO


def folder_of(name: str) -> Path | None:
    """Where a model of the zoo lies on this machine; one that was built here goes before the shipped one."""
    for folder in (cache_folder() / "zoo" / name, SHIPPED / name):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def find(reference: str) -> Path:
    """Folder of `NAME[@revision]`; BadModelError with the command that makes it when it is not here."""
    name, _, revision = reference.partition("@")
    folder = folder_of(name)
    if revision and folder is not None and folder_revision(folder) != revision and name in ZOO:
        shipped = SHIPPED / name  # a model built here may hide the shipped one that is meant
        folder = (
            shipped
            if (shipped / MANIFEST).is_file() and folder_revision(shipped) == revision
            else folder
        )
    if folder is None:
        raise BadModelError(
            f"{name}: is not on this machine yet: make it with `evenfield zoo build {name}`"
        )
    if revision and folder_revision(folder) != revision:
        raise BadModelError(
            f"{reference}: this machine has revision {folder_revision(folder)}: name that, or install the version of "
            "evenfield that the other one came with"
        )
    return folder
