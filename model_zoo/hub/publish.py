"""Before a model goes up: what would, what its card lacks, and what must not be seen by others."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..package.folder import ModelRecord, Package, folder_revision, open_package
from ..package.manifest import BadModelError, Manifest, read_manifest
from ..potential.invariance import check_invariance
from . import hugging_face
from .folder_hub import FolderHub
from .load import FOLDER_HUB_VARIABLE, split_reference


SECRETS = {
    "a token": r"\b(hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|(glpat|sk|xox[abprs])-[\w-]{12,})",
    "a cloud key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|X-Amz-Signature=|[?&]sig=",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password": r"://[^/\s:@\"]+:[^/\s@\"]+@|(?i:passw(or)?d|secret|api_?key)[\"']?\s*[:=]\s*[\"']?\w{4,}",
    "an absolute path": r"(?:^|(?<=[\s=,;'\"(\[]))(file://)?(~|/[\w.@+-]+)(/[\w.@+-]+)+|(?:^|[\s='\"])[A-Za-z]:\\\\?\w",
}
COMMON_NAMES = {"root", "user", "users", "admin", "runner", "ubuntu", "test", "localhost"}


@dataclass(frozen=True)
class Publication:
    """What `publish` would do, for a dry run to show."""

    repo: str
    revision: str  # of the folder; on the Hugging Face hub the commit takes its place
    files: dict[str, int]  # name -> bytes
    lacks: list[str]  # without these it is refused
    advice: list[str]  # without these the card is weaker
    leaks: list[str]  # what others must not see

    @property
    def refusal(self) -> str | None:
        """Why it must not go up, in one line."""
        reasons = [f"its record lacks: {', '.join(self.lacks)}"] if self.lacks else []
        reasons += [f"it shows {'; '.join(self.leaks[:5])}"] if self.leaks else []
        mend = "say it with `evenfield hub describe`, or make the model again without it"
        return f"not fit to publish, {' and '.join(reasons)}: {mend}" if reasons else None


def publish(
    model: Path | str,
    repo: str,
    folder_hub: Path | str | None = None,
    *,
    private: bool = False,
    tag: str | None = None,
) -> str:
    """Publish a model folder as `owner/name`, on the Hugging Face hub or in a folder hub; returns the pinned reference.

    Refuses a model without licence, training data or named level of theory, which nobody could judge, one that shows
    tokens, paths or user names, and one whose predictions are not invariant. `private` is for the Hugging Face hub.
    """
    model = Path(model)
    plan, package = _look(model, repo)
    if plan.refusal:
        raise BadModelError(f"{model}: {plan.refusal}")
    if tag is not None and split_reference(f"{repo}@{tag}")[1] in (None, "main"):
        raise BadModelError(f"{tag}: no name for a tag")
    check_invariance(package.potential, package.record.elements)
    manifest, root = read_manifest(model), folder_hub or os.environ.get(FOLDER_HUB_VARIABLE)
    if root is not None:
        return f"{repo}@{FolderHub(root).publish(model, manifest, repo, tag)}"
    message = f"{package.record.name}, manifest {plan.revision}"
    return f"{repo}@{hugging_face.publish(model, manifest, repo, private=private, tag=tag, message=message)}"


def plan_publication(model: Path | str, repo: str) -> Publication:
    """What `publish` would put up and what it would say against it; nothing is sent."""
    return _look(Path(model), repo)[0]


def _look(model: Path, repo: str) -> tuple[Publication, Package]:
    if "@" in repo:
        raise BadModelError(f"{repo}: publish to a name of the form owner/name")
    split_reference(repo)
    package, manifest = open_package(model), read_manifest(model)
    sizes = {name: (model / name).stat().st_size for name in [*manifest.files, "manifest.json"]}
    plan = Publication(
        repo=repo,
        revision=folder_revision(model),
        files=sizes,
        lacks=missing_facts(package.record, package.potential.config.levels_of_theory),
        advice=list(_advice(package)),
        leaks=list(_leaks(model, manifest)),
    )
    return plan, package


def missing_facts(record: ModelRecord, levels: list[str]) -> list[str]:
    """What nobody can judge a model without."""
    lacking = [] if record.licence else ["licence"]
    lacking += [] if record.training_data else ["training data"]
    return lacking + (["level of theory"] if "default" in levels or not all(levels) else [])


def _advice(package: Package) -> Iterator[str]:
    record, evaluation = package.record, package.evaluation
    for what in ("description", "citation", "train_counts"):
        if not getattr(record, what):
            yield what
    for level in package.potential.config.levels_of_theory:
        if level not in record.level_details:
            yield f"level_details of {level}: code, functional, basis, dispersion, spin"
    for data in record.training_data:
        if data.licence.lower() in ("", "unknown", "not stated"):
            yield f"licence of the data set {data.name}"
    if not evaluation:
        yield "errors on held-out structures"
    for level, row in evaluation.get("levels", {}).items():
        if row.get("stress_mae") is None:
            yield f"stress errors at {level}"
    for name, what in {"probe.extxyz": "probe set", "posterior.safetensors": "posterior"}.items():
        if name not in package.attachments:
            yield f"{what} ({name})"
    if "seconds" not in record.training:
        yield "compute that the training took"


def _leaks(model: Path, manifest: Manifest) -> Iterator[str]:
    """`file: place holds what`, with at most six characters of it."""
    found = False
    for place, text in _values(json.loads((model / "config.json").read_bytes())):
        for kind, match in _secrets(
            text, user_names() if place.startswith("record.train") else set()
        ):
            found = True
            yield f"config.json: {place} holds {kind} ({match[:6]}...)"
    for name in manifest.files:
        if name == "config.json" or (name == "README.md" and found):  # the card repeats the config
            continue
        data = (model / name).read_bytes()
        if name.endswith(".safetensors"):
            data = data[8 : 8 + int.from_bytes(data[:8], "little")]  # its header
        elif name.endswith(".png"):
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            for kind, match in _secrets(line, set()):
                yield f"{name}: line {number} holds {kind} ({match[:6]}...)"


def _values(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON tree, keys too, with its place."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{place}.{key}".lstrip("."), key
            # a key beside its value, so that {"password": "..."} is seen for what it is
            yield from (
                (p, f"{key}={t}" if isinstance(value, str) else t)
                for p, t in _values(value, f"{place}.{key}")
            )
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _values(value, f"{place}.{index}")
    elif isinstance(tree, str):
        yield place.lstrip("."), tree


def _secrets(text: str, names: set[str]) -> Iterator[tuple[str, str]]:
    for kind, pattern in SECRETS.items():
        if match := re.search(pattern, text):
            yield kind, match[0].strip()
    for name in names:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
            yield "the name of a user or machine", name


def user_names() -> set[str]:
    """This machine's name and that of who uses it, unless everybody's is like it."""
    names = {socket.gethostname()}
    with suppress(KeyError, OSError):  # a user id without an entry, as in some containers
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in COMMON_NAMES}
