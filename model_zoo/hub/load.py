"""Models by reference: a folder, a name of the zoo, or `owner/name[@revision]` in a folder hub or on Hugging Face's.

A reference that is loaded is pinned to a revision at once, and what is made with the model records the pinned one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.calculators.calculator import Calculator

from ..package.folder import ModelRecord, open_package
from ..package.manifest import BadModelError
from ..potential.potential import Potential
from ..zoo import named_models as zoo
from . import hugging_face
from .folder_hub import FolderHub


FOLDER_HUB_VARIABLE = "EVENFIELD_HUB"
REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w.-]*))?", re.ASCII
)


@dataclass(frozen=True)
class LoadedModel:
    """A potential with its record and the reference that pins it."""

    potential: Potential
    record: ModelRecord
    reference: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # errors on held-out structures
    attachments: Mapping[str, bytes] = field(
        default_factory=dict
    )  # probe.extxyz and the like, verified

    def calculator(
        self,
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        compiled: bool = False,
    ) -> Calculator:
        """An ASE calculator for one level of theory (the first of the model when none is named).

        `dtype` is float32 or float64, that of the weights when None; `skin` in A saves neighbour lists.
        `compiled` takes a minute at the first call and a quarter off every later one; it wants a C++ compiler.
        """
        from ..engines.calculator import EvenfieldCalculator

        return EvenfieldCalculator(
            self.potential,
            self.record,
            device=device,
            level_of_theory=level_of_theory,
            dtype=dtype,
            skin=skin,
            compiled=compiled,
            reference=self.reference,
        )


def load(reference: str | Path, folder_hub: Path | str | None = None) -> LoadedModel:
    """Load a model by folder, zoo name or `owner/name[@revision]`; raises BadModelError with the mend."""
    folder, pinned = resolve(reference, folder_hub)
    package = open_package(folder)
    return LoadedModel(
        potential=package.potential,
        record=package.record,
        reference=pinned or f"{package.record.name}@{package.revision}",
        evaluation=package.evaluation,
        attachments=package.attachments,
    )


def resolve(
    reference: str | Path, folder_hub: Path | str | None = None, *, force: bool = False
) -> tuple[Path, str | None]:
    """Folder of a reference, fetched if it is not here yet, and the reference with its revision pinned.

    A folder by itself has no reference: None. `force` fetches again what the cache holds.
    """
    if Path(reference).is_dir():
        return Path(reference), None
    if zoo.is_zoo_name(str(reference)):
        return zoo.find(str(reference)), None
    repo, revision = split_reference(str(reference))
    root = folder_hub or os.environ.get(FOLDER_HUB_VARIABLE)
    if root is None:
        folder, commit = hugging_face.fetch(repo, revision, force=force)
        return folder, f"{repo}@{commit}"
    hub = FolderHub(root)
    revision = hub.revision(repo, revision)
    return hub.fetch(repo, revision, force=force), f"{repo}@{revision}"


def split_reference(reference: str) -> tuple[str, str | None]:
    """`owner/name[@revision]` in its two parts; BadModelError for anything else."""
    match = REFERENCE.fullmatch(reference)
    if not match or ".." in reference:
        raise BadModelError(
            f"{reference}: neither a folder nor a reference owner/name[@revision] nor a model of the zoo "
            f"({', '.join(zoo.names())})"
        )
    return match["repo"], match["revision"]
