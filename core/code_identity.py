"""Digests of the code behind a calculator's name, and of the weights that its settings name.

Stored results of a calculator are valid only for the code that produced them. A digest of the code
shows whether it has changed.
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


# Files that a calculator reads but does not write: scripts, weights, parameters. Other files named
# in settings may be its own output, such as a log in .txt.
SCRIPTS = (".py", ".sh", ".yaml", ".yml", ".toml", ".json")
WEIGHTS = (".pt", ".pth", ".pt2", ".ckpt", ".model", ".safetensors", ".pb", ".npz", ".zip", ".h5")
PARAMETERS = (".alloy", ".fs", ".eam", ".tersoff", ".sw", ".meam", ".reaxff", ".snap", ".snapcoeff")
ENDINGS = (*SCRIPTS, *WEIGHTS, *PARAMETERS)
INSTALLED = ("site-packages", "dist-packages")
MODEL_MANIFEST = "manifest.json"


def code_identity(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """A SHA-256 digest that changes with the code of `module:name` and the files in its settings.

    The code consists of the module and of the modules next to it that it imports. For an installed
    package, it is only the module itself, plus the package version. A setting may be the path of a
    script, of weights or of a model folder, or a shell command that contains such a path. Files
    that these read in turn are not followed. For a name without a module, only the settings count.
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
    """Yield digests of a module's file and of the files it imports, then the package version."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        # the error will be reported when the module is imported
        return
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return
    origin = Path(spec.origin)

    # the folder on sys.path in which Python finds the module
    depth = module.count(".") + (origin.name == "__init__.py")
    root = origin.parents[depth]
    is_installed = set(INSTALLED) & set(root.parts) or root == Path(os.__file__).parent
    files = [origin] if is_installed else _imported_files(origin, root)
    for path in files:
        yield f"{path.relative_to(root)} {file_sha256(path)}"
    # the import name of a package is nearly always its distribution name
    with suppress(importlib.metadata.PackageNotFoundError):
        yield importlib.metadata.version(module.partition(".")[0])


def _imported_files(origin: Path, root: Path) -> list[Path]:
    """`origin` and all files below `root` that it imports, directly or indirectly.

    The import statements are parsed and not executed.
    """
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
            # the error will be reported when the file is imported
            continue
        for node in ast.walk(tree):
            waiting += _files_of_import(node, path, root)
    return sorted(found)


def _files_of_import(node: ast.AST, path: Path, root: Path) -> list[Path]:
    """The files below `root` that an import statement in the file `path` reads.

    Empty for nodes that are not imports.
    """
    if isinstance(node, ast.Import):
        folder = root
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        # each leading dot goes up by one folder
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
    """Yield all strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _words(text: str) -> set[str]:
    """The whole text, which may be a path, and its words as a shell command."""
    try:
        return {text, *shlex.split(text)}
    except ValueError:
        # unbalanced quotes: not a shell command
        return {text}


def _content_of(path: Path) -> Iterator[str]:
    """Yield the digest of a script, weights or a model folder; nothing for any other path."""
    try:
        if path.is_file() and path.name.endswith(ENDINGS):
            yield file_sha256(path)
        # the manifest lists the digests of all other files in the folder
        elif (path / MODEL_MANIFEST).is_file():
            yield file_sha256(path / MODEL_MANIFEST)
    except (OSError, ValueError):
        # not a path, or no permission to read it: the calculator will report the error
        return
