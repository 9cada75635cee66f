"""Models by reference: a folder, or `owner/name[@revision]` in a plain folder hub or on the Hugging Face hub.

A folder hub is ROOT/owner/name/snapshots/REVISION/files with ROOT/owner/name/refs/main written last; the
revision is the hash of the model's manifest, so the same model published twice is one snapshot.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ase.calculators.calculator import Calculator
from huggingface_hub import snapshot_download

from ..data_pipelines.shards import write_atomically
from .invariance import check_invariance
from .package import BadModelError, ModelRecord, load_model
from .potential import Potential


FOLDER_HUB_VARIABLE = "EVENFIELD_HUB"
REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")


@dataclass(frozen=True)
class LoadedModel:
    """A potential with its record and the reference that pins it."""

    potential: Potential
    record: ModelRecord
    reference: str

    def calculator(self, device: str = "cpu", level_of_theory: str | None = None) -> Calculator:
        """An ASE calculator for one level of theory (the first of the model when none is named)."""
        from .calculator import EvenfieldCalculator

        return EvenfieldCalculator(self.potential, self.record, device=device, level_of_theory=level_of_theory)


def load(reference: str | Path, folder_hub: Path | str | None = None) -> LoadedModel:
    """Load a model by folder or `owner/name[@revision]`; raises BadModelError with the mend."""
    folder, pinned = resolve(reference, folder_hub)
    potential, record = load_model(folder)
    return LoadedModel(potential, record, pinned)


def resolve(reference: str | Path, folder_hub: Path | str | None = None) -> tuple[Path, str]:
    """Folder of a reference and the reference with its revision pinned."""
    if Path(reference).is_dir():
        return Path(reference), str(reference)
    match = REFERENCE.fullmatch(str(reference))
    if not match:
        raise BadModelError(f"{reference}: neither a folder nor a reference owner/name[@revision]")
    repo, revision = match["repo"], match["revision"]
    root = folder_hub or os.environ.get(FOLDER_HUB_VARIABLE)
    if root is None:
        try:
            folder = Path(snapshot_download(repo, revision=revision))
        except Exception as error:  # the client raises many kinds: not found, no network, not allowed
            raise BadModelError(
                f"{reference}: not a folder here and not to be had from the Hugging Face hub ({type(error).__name__}); "
                f"for a folder hub give --folder-hub or set {FOLDER_HUB_VARIABLE}"
            ) from None
        return folder, f"{repo}@{folder.name}"
    home = Path(root) / repo
    if not (home / "refs" / "main").is_file():
        raise BadModelError(f"{reference}: no such model in the folder hub {root}")
    revision = revision or (home / "refs" / "main").read_text().strip()
    folder = home / "snapshots" / revision
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in (home / "snapshots").iterdir()))
        raise BadModelError(f"{reference}: no revision {revision} in the folder hub {root}; it has: {known}")
    return folder, f"{repo}@{revision}"


def publish(model: Path | str, repo: str, folder_hub: Path | str) -> str:
    """Publish a model folder as `owner/name` in a folder hub; returns the pinned reference.

    Refuses a model without licence, training data or named level of theory, which nobody could judge, and one whose
    predictions are not invariant.
    """
    model = Path(model)
    if not REFERENCE.fullmatch(repo) or "@" in repo:
        raise BadModelError(f"{repo}: publish to a name of the form owner/name")
    potential, record = load_model(model)
    lacking = [] if record.licence else ["licence"]
    lacking += [] if record.training_data else ["training data"]
    lacking += ["level of theory"] if potential.config.levels_of_theory == ["default"] else []
    if lacking:
        raise BadModelError(f"{model}: not fit to publish, its record lacks: {', '.join(lacking)}")
    check_invariance(potential, record.elements)
    revision = hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()[:16]
    home = Path(folder_hub) / repo
    target = home / "snapshots" / revision
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
        for path in model.iterdir():
            if path.is_file():
                shutil.copy2(path, temporary / path.name)
        temporary.chmod(0o755)
        temporary.rename(target)
    (home / "refs").mkdir(exist_ok=True)
    write_atomically(home / "refs" / "main", revision)
    return f"{repo}@{revision}"
