"""The table of packages in pyproject.toml is whole: a folder that it lacks works here and is absent from the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
NO_PACKAGES = {"build", "dist", "runs", "tests"}


def test_every_package_is_listed() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")}
    folders = {f for f in folders if not f.parts[0].startswith(".") and f.parts[0] not in NO_PACKAGES}
    names = {f"evenfield.{'.'.join(folder.parts)}" for folder in folders}
    assert set(table["packages"]) == names
    assert table["package-dir"] == {f"evenfield.{f.as_posix()}": f.as_posix() for f in folders if len(f.parts) == 1}
    assert all((ROOT / folder / "py.typed").is_file() for folder in table["package-dir"].values())
