"""Which packages are packed: every folder with an __init__.py inside one of the rooms.

The rooms are the entries of `package-dir` in pyproject.toml, which holds everything else. Listing
the packages there would need a line for every new subpackage, such as a new network.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).parent


def packages() -> list[str]:
    """Import names of all packages."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = []
    for room in settings["tool"]["setuptools"]["package-dir"].values():
        for init in (ROOT / room).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.append(".".join(("evenfield", *parts)))
    return sorted(found)


setup(packages=packages())
