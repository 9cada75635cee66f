"""Publish a model folder, after checks of its content.

A model is refused if its record lacks facts that users need to judge it, if it would reveal private
information, if its predictions are not invariant, or if physical checks failed or are missing. A
dry run reports what the content checks find and sends nothing.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.addresses import local_path
from ...core.files import file_errors
from ...core.labels import LABELS
from ...data_pipelines.corpus.licences import refusal
from ..heads.record import heads_of
from ..package.folder import ModelFolder, folder_revision, read_model_folder
from ..package.levels import default_level
from ..package.manifest import MANIFEST, BadModelError, Manifest, read_manifest
from ..package.record import ModelRecord
from ..package.sanity_record import PHYSICS, sanity_record, unsound
from ..package.sanity_record import REMEDY as SANITY_REMEDY
from ..potential.invariance import check_invariance
from . import hugging_face
from .folder_hub import FolderHub
from .load import REFERENCE, folder_hub_root
from .remote import HubError


# kind of secret -> pattern that finds it
SECRETS = {
    "a token": (
        r"\b(hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|(glpat|sk|xox[abprs])-[\w-]{12,})"
    ),
    "a cloud key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|X-Amz-Signature=|[?&]sig=",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password": (
        # in an address, or after a key such as `password`
        r"://[^/\s:@\"]+:[^/\s@\"]+@"
        r"|(?i:passw(or)?d|secret|api_?key)[\"']?\s*[:=]\s*[\"']?\w{4,}"
    ),
    "an absolute path": (
        # Unix paths at the start or after a separator, and Windows paths
        r"(?:^|(?<=[\s=,;'\"(\[]))(file://)?(~|/[\w.@+-]+)(/[\w.@+-]+)+"
        r"|(?:^|[\s='\"])[A-Za-z]:\\\\?\w"
    ),
}
# names that say nothing about the user or the machine
COMMON_NAMES = {"root", "user", "users", "admin", "runner", "ubuntu", "test", "localhost"}
# fact that the record can lack -> how to supply it
REMEDIES = {
    "licence": "add one with `evenfield hub describe MODEL licence=...`",
    "training data": "train on a converted data set, which the record then names",
    "level of theory": "train on data with a named level of theory",
    "training structures of every listed element": "train on data that have them",
    "training data whose licences allow a public model": (
        "train without the sources that the card marks as not publishable"
    ),
}
BATTERY = "verdicts about simulations (`evenfield check physics MODEL --attach`)"
UNSTATED_LICENCES = ("", "unknown", "not stated")


@dataclass(frozen=True)
class Publication:
    """What `publish` would do; a dry run shows it."""

    repo: str
    revision: str  # of the folder; on the Hugging Face hub the commit takes its place
    files: dict[str, int]  # name -> bytes
    lacks: list[str]  # missing facts, keys of REMEDIES; the model is refused without them
    advice: list[str]  # facts that would improve the card
    leaks: list[str]  # private information; the model is refused if there is any
    unsound: list[str]  # physical checks that failed or are missing
    allow_failed: bool = False  # whether the model is published in spite of `unsound`

    @property
    def refused(self) -> bool:
        """Whether `publish` would refuse the model."""
        return bool(self.lacks or self.leaks or (self.unsound and not self.allow_failed))


def publish(
    model: Path | str,
    repo: str,
    folder_hub: Path | str | None = None,
    *,
    private: bool = False,
    tag: str | None = None,
    allow_failed: bool = False,
) -> str:
    """Publish a model folder as `owner/name`; returns the pinned reference.

    The model goes to a folder hub if `folder_hub` or EVENFIELD_HUB names one, else to the Hugging
    Face hub. Only the latter supports `private` models.

    Raises BadModelError for a model without licence, training data or named level of theory; for a
    model trained on data whose licence does not allow publication; for a model that contains
    tokens, paths or user names; for predictions that are not invariant; and, unless `allow_failed`,
    for failed or missing physical checks. Raises HubError if the hub refuses.
    """
    model = local_path(model)
    _check_repo(repo)
    if tag is not None:
        _check_tag(repo, tag)
    plan, content = _inspect(model, repo, allow_failed=allow_failed)
    _refuse_unfit(model, plan)
    # after the cheaper checks, because it runs the model
    check_invariance(content.potential, content.record.elements)
    # Last, because the user must rerun physical checks, which take minutes, after any change of the
    # weights.
    if plan.unsound and not allow_failed:
        checks = SANITY_REMEDY.replace("MODEL", str(model))
        if len(content.potential.config.levels_of_theory) > 1:
            checks += ", for each level of theory with --level-of-theory"
        raise BadModelError(
            f"not fit to publish: {'; '.join(plan.unsound)}",
            file=model,
            remedy=f"{checks}, or publish it with --allow-failed",
        )

    manifest = read_manifest(model)
    root = folder_hub_root(folder_hub)
    if root is not None:
        revision = FolderHub(root).publish(model, manifest, repo, tag)
    else:
        revision = hugging_face.publish(
            model,
            manifest,
            repo,
            private=private,
            tag=tag,
            message=f"{content.record.name}, manifest {plan.revision}",
        )
    return f"{repo}@{revision}"


def plan_publication(
    model: Path | str, repo: str, *, tag: str | None = None, allow_failed: bool = False
) -> Publication:
    """What `publish` would upload and what it would object to. Nothing is sent.

    Invariance is not checked.
    """
    _check_repo(repo)
    if tag is not None:
        _check_tag(repo, tag)
    plan, _ = _inspect(local_path(model), repo, allow_failed=allow_failed)
    return plan


def _refuse_unfit(model: Path, plan: Publication) -> None:
    if not plan.lacks and not plan.leaks:
        return
    reasons = []
    remedies = [REMEDIES[lack] for lack in plan.lacks]
    if plan.lacks:
        reasons.append(f"its record lacks {', '.join(plan.lacks)}")
    if plan.leaks:
        # a leak often repeats in many places, and five show where to look
        reasons.append("; ".join(plan.leaks[:5]))
        remedies.append("make the model again without what must not be seen")
    raise BadModelError(
        f"not fit to publish: {', and '.join(reasons)}", file=model, remedy="; ".join(remedies)
    )


def _check_tag(repo: str, tag: str) -> None:
    # users load models by tag, so it must be valid in a reference; main is not fixed
    is_fixed = tag != "main" and REFERENCE.fullmatch(f"{repo}@{tag}") is not None
    # a tag that looks like a revision would hide the revision of that name
    if not is_fixed or re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{40}", tag):
        raise HubError(
            f"{tag!r} cannot be a tag",
            remedy="choose another one of letters, digits, dots, dashes and underscores, v1 for "
            "instance; main and the form of a revision are taken",
        )


def _check_repo(repo: str) -> None:
    """Raise HubError for a name under which the model could not be loaded afterwards."""
    name, at, tag = repo.partition("@")
    if at and REFERENCE.fullmatch(name):
        raise HubError(
            "names a revision, and publishing makes a new one",
            file=repo,
            remedy=f"publish it as {name}, with --tag {tag or 'v1'} for a name that stays",
        )
    if at or not REFERENCE.fullmatch(repo):
        raise HubError(
            "is no name to publish under",
            file=repo,
            remedy="write owner/name, of letters, digits, dots, dashes and underscores",
        )


def _inspect(model: Path, repo: str, *, allow_failed: bool) -> tuple[Publication, ModelFolder]:
    """The publication plan for a model folder, and its content."""
    content = read_model_folder(model)
    manifest = read_manifest(model)
    levels = content.potential.config.levels_of_theory

    sizes = {}
    with file_errors(model):
        for name in [*manifest.files, MANIFEST]:
            sizes[name] = (model / name).stat().st_size
        leaks = list(_leaks(model, manifest))

    plan = Publication(
        repo=repo,
        revision=folder_revision(model),
        files=sizes,
        lacks=missing_facts(content.record, levels),
        advice=list(_advice(content)),
        leaks=leaks,
        unsound=unsound(content.potential, content.record, content.attachments),
        allow_failed=allow_failed,
    )
    return plan, content


def missing_facts(record: ModelRecord, levels: list[str]) -> list[str]:
    """Missing facts, as keys of REMEDIES, that users need in order to judge a model."""
    lacking = []
    if not record.licence:
        lacking.append("licence")
    if not record.training_data:
        lacking.append("training data")
    # the level is called "default" if the data do not state one
    if "default" in levels or not all(levels):
        lacking.append("level of theory")
    if record.unlearned():
        lacking.append("training structures of every listed element")
    if any(data.unpublishable for data in record.training_data):
        lacking.append("training data whose licences allow a public model")
    return lacking


def _advice_on_levels(record: ModelRecord, levels: list[str]) -> Iterator[str]:
    if default_level(record, levels) is None:
        yield "default_level: without it, users must name one of several levels of theory"
    for level in levels:
        if level not in record.level_details:
            yield f"level_details of {level}: code, functional, basis, dispersion, spin"


def _advice_on_heads(content: ModelFolder) -> Iterator[str]:
    for name, head in heads_of(content.potential, content.attachments).items():
        licence = head.description.licence
        if licence is None:
            yield f"licence of the labels of the head {name}"
            continue
        problem = refusal(licence)
        if problem is not None:
            yield f"permission of whoever owns the labels of the head {name}: {problem}"


def _advice(content: ModelFolder) -> Iterator[str]:
    """Facts that would improve the card, one line each."""
    record = content.record
    evaluation = content.evaluation
    for name in ("description", "citation", "train_counts"):
        if not getattr(record, name):
            yield name
    yield from _advice_on_levels(record, content.potential.config.levels_of_theory)
    for data in record.training_data:
        if data.licence.lower() in UNSTATED_LICENCES:
            yield f"licence of the data set {data.name}"
        elif not data.sources:
            # for a corpus, `missing_facts` refuses such licences; here the publisher may own the
            # data
            problem = refusal(data.licence)
            if problem is not None:
                yield f"permission of whoever owns the data set {data.name}: {problem}"

    yield from _advice_on_heads(content)
    if evaluation is None:
        yield "errors on held-out structures"
    else:
        for level, errors in evaluation.levels.items():
            for name, label in LABELS.items():
                if errors.mae.get(name) is None:
                    yield f"{label.title} errors at {level}"

    if "seconds" not in record.training:
        yield "the time that the training took"
    yield from _advice_on_attachments(content)


def _advice_on_attachments(content: ModelFolder) -> Iterator[str]:
    if "probe.extxyz" not in content.attachments:
        yield "probe set (probe.extxyz)"
    if "posterior.safetensors" not in content.attachments:
        yield "posterior (posterior.safetensors)"
    if lacks_battery(content):
        yield BATTERY


def lacks_battery(content: ModelFolder) -> bool:
    """Whether the model has no record of simulation checks (`evenfield check physics`)."""
    return sanity_record(content.potential, content.attachments, PHYSICS) is None


# --- what must not be seen


def _leaks(model: Path, manifest: Manifest) -> Iterator[str]:
    """One line per leak: file, place, kind, and at most its first six characters."""
    in_config = list(_leaks_of_config(model))
    yield from in_config
    for name in manifest.files:
        # the card repeats the config, so its leaks would be listed twice
        repeated = name == "README.md" and in_config
        if name == "config.json" or name.endswith(".png") or repeated:
            continue
        data = (model / name).read_bytes()
        if name.endswith(".safetensors"):
            # only the header contains text
            header_length = int.from_bytes(data[:8], "little")
            data = data[8 : 8 + header_length]

        lines = data.decode(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            for kind, match in _secrets(line, set()):
                yield f"{name}: line {number} holds {kind} ({match[:6]}...)"


def _leaks_of_config(model: Path) -> Iterator[str]:
    config = json.loads((model / "config.json").read_bytes())
    for place, text in _texts(config):
        # A user name may occur legitimately, for example in a citation. It is searched for only in
        # generated parts of the record: training, training_data, train_counts.
        names = user_names() if place.startswith("record.train") else set()
        for kind, match in _secrets(text, names):
            yield f"config.json: {place} holds {kind} ({match[:6]}...)"


def _texts(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield place and content of every string in a JSON tree, including keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            inner = f"{place}.{key}".lstrip(".")
            yield inner, key
            if isinstance(value, str):
                # together with its key, so that {"password": "..."} is recognised
                yield inner, f"{key}={value}"
            else:
                yield from _texts(value, inner)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _texts(value, f"{place}.{index}")
    elif isinstance(tree, str):
        yield place, tree


def _secrets(text: str, names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield kind and match of every secret in a text."""
    for kind, pattern in SECRETS.items():
        match = re.search(pattern, text)
        if match:
            yield kind, match[0].strip()
    for name in names:
        # as a whole word, so that "ann" does not match "planned"
        whole_word = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
        if re.search(whole_word, text):
            yield "the name of a user or machine", name


def user_names() -> set[str]:
    """The names of this machine and its user, except common ones such as root."""
    names = {socket.gethostname()}
    # a user id may have no name, for example in a container
    with suppress(KeyError, OSError):
        names.add(getpass.getuser())

    # names of one or two letters would match in chemical formulas
    long_enough = {name for name in names if len(name) > 2}
    return {name for name in long_enough if name.lower() not in COMMON_NAMES}
