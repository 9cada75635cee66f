"""What stands behind a name: the code of a calculator, and the weights that its settings name.

Results that are kept under the name of a calculator belong to its code. A digest of the code tells
whether they still do.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import file_sha256


# Files that a calculator reads and does not write: scripts, weights, parameters. Others that
# settings name may be its own output, such as a log in .txt.
SCRIPTS = (".py", ".sh", ".yaml", ".yml", ".toml", ".json")
WEIGHTS = (".pt", ".pth", ".pt2", ".ckpt", ".model", ".safetensors", ".pb", ".npz", ".zip", ".h5")
PARAMETERS = (".alloy", ".fs", ".eam", ".tersoff", ".sw", ".meam", ".reaxff", ".snap", ".snapcoeff")
ENDINGS = (*SCRIPTS, *WEIGHTS, *PARAMETERS)
INSTALLED = ("site-packages", "dist-packages")
MODEL_MANIFEST = "manifest.json"


def code_identity(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """A digest that changes with the code of `module:name`, or with weights that settings name.

    The code is that of the module and of all modules beside it that it imports. Of an installed
    package it is that of the module and the version. A setting may be the path of a script, of
    weights or of a model folder, or a line of a shell with such a path in it. What these read in
    turn is not followed. A name without a module has only its settings.
    """
    digest = hashlib.sha256()
    module, colon, _ = name.partition(":")
    if colon:
        for part in _code_of(module):
            digest.update(part.encode())
    for text in _texts(settings or {}):
        for word in sorted(_words(text)):
            for part in _content_of(Path(word)):
                digest.update(part.encode())
    return digest.hexdigest()


def _code_of(module: str) -> Iterator[str]:
    """Digests of the files of a module and of those that it imports, and its package's version."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        # whoever imports it says what is wrong
        return
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return
    origin = Path(spec.origin)

    # the folder that Python finds the module in
    depth = module.count(".") + (origin.name == "__init__.py")
    root = origin.parents[depth]
    is_installed = set(INSTALLED) & set(root.parts) or root == Path(os.__file__).parent
    files = [origin] if is_installed else _imported_files(origin, root)
    for path in files:
        yield f"{path.relative_to(root)} {file_sha256(path)}"
    # what a package is called where it is imported is nearly always its name
    with suppress(importlib.metadata.PackageNotFoundError):
        yield importlib.metadata.version(module.partition(".")[0])


def _imported_files(origin: Path, root: Path) -> list[Path]:
    """`origin`, and the files below `root` that it imports, by what their code says."""
    found: set[Path] = set()
    waiting = [origin]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # whoever imports it says what is wrong
            continue
        for node in ast.walk(tree):
            waiting += _files_of_import(node, path, root)
    return sorted(found)


def _files_of_import(node: ast.AST, path: Path, root: Path) -> list[Path]:
    """The files below `root` that an import in the file `path` reads; none for other code."""
    if isinstance(node, ast.Import):
        folder = root
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        # each dot is a folder further up
        folder = path.parents[node.level - 1] if node.level else root
        names = [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
    else:
        return []

    files = []
    for name in names:
        inner = folder
        for part in name.split("."):
            files += [inner / f"{part}.py", inner / part / "__init__.py"]
            inner /= part
    return [file for file in files if file.is_file()]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _words(text: str) -> set[str]:
    """A text as a path by itself, and the words of it as a line of a shell."""
    try:
        return {text, *shlex.split(text)}
    except ValueError:
        # a quotation mark without its pair is no line of a shell
        return {text}


def _content_of(path: Path) -> Iterator[str]:
    """The digest of a script, of weights or of a model folder; none for other texts."""
    try:
        if path.is_file() and path.name.endswith(ENDINGS):
            yield file_sha256(path)
        # lists the digests of all other files
        elif (path / MODEL_MANIFEST).is_file():
            yield file_sha256(path / MODEL_MANIFEST)
    except (OSError, ValueError):
        # a text that is no path, or a place that may not be read: whoever uses it says so
        return
