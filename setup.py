"""Collect the packages to install: every folder with an __init__.py below a top-level folder.

The top-level folders are the entries of `package-dir` in pyproject.toml, which holds all other
metadata. Listing the packages there would need a new line for every subpackage, such as a network.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import setup


ROOT = Path(__file__).parent


def packages() -> list[str]:
    """Import names of all packages, sorted."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = []
    for room in settings["tool"]["setuptools"]["package-dir"].values():
        for init in (ROOT / room).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.append(".".join(("evenfield", *parts)))
    return sorted(found)


setup(packages=packages())
