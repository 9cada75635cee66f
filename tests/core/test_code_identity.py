"""A name is told from another version of what it stands for."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from evenfield.core.code_identity import code_identity


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "oracle_of_a_test.py"
    path.write_text("class Calc: pass\n")
    return path


def test_code_behind_a_name(module: Path) -> None:
    before = code_identity("oracle_of_a_test:Calc")
    assert code_identity("oracle_of_a_test:Calc") == before
    module.write_text("class Calc: factor = -3\n")
    assert code_identity("oracle_of_a_test:Calc") != before
    # those that have no file of their own are what evenfield is
    assert code_identity("EMT") == code_identity("GFN1-xTB")
    assert code_identity("no_such_module.at_all:Calc") == code_identity("EMT")


@pytest.mark.parametrize(
    "name", ["packaged:Calc", "packaged.calc:Calc", "plain:Calc", "plain:make", "spaced:Calc"]
)
def test_code_that_it_imports(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class is often written in another file than the one that its name leads to."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / "__init__.py").write_text("from .calc import Calc\n")
    (tmp_path / "packaged" / "calc.py").write_text("from .deep import Base as Calc\nimport numpy\n")
    (tmp_path / "packaged" / "deep.py").write_text("from helper_of_a_test import Base\n")
    plain = "def make():\n    from helper_of_a_test import Base\n    return Base()\nCalc = make\n"
    (tmp_path / "plain.py").write_text(plain)
    # a folder without __init__.py is a package too
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "inner.py").write_text("from helper_of_a_test import Base as Calc\n")
    (tmp_path / "spaced.py").write_text("from space.inner import Calc\nfrom . import nothing\n")
    helper = tmp_path / "helper_of_a_test.py"
    helper.write_text("class Base: factor = 1\n")
    before = code_identity(name)
    assert code_identity(name) == before
    helper.write_text("class Base: factor = -1\n")
    assert code_identity(name) != before
    # looking for a module in a package imports the package
    for imported in ("packaged", "packaged.calc", "packaged.deep", helper.stem):
        sys.modules.pop(imported, None)


def test_installed_code_is_not_followed() -> None:
    """Digests of all of a package would take seconds; its version stands for it."""
    started = time.perf_counter()
    assert code_identity("ase.calculators.emt:EMT") != code_identity("ase.calculators.lj:EMT")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["weights.pt", "Cu.eam.alloy", "run.sh", "model/manifest.json"])
def test_what_settings_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("one")
    place = path.parent if path.name == "manifest.json" else path
    several = [
        {"model": str(place)},
        {"deep": [{"models": [str(place)]}]},
        {"command": f"bash '{place}' {{input}} {{output}}"},
    ]
    before = [code_identity("command", settings) for settings in several]
    path.write_text("two")
    for settings, old in zip(several, before, strict=True):
        assert code_identity("command", settings) != old


def test_what_a_calculator_writes_is_no_part_of_it(tmp_path: Path) -> None:
    """Else a loop could never go on."""
    log = tmp_path / "log.txt"
    log.write_text("one")
    settings = {"txt": str(log), "directory": str(tmp_path), "broken": "a 'b", "long": "x" * 5000}
    before = code_identity("command", settings)
    log.write_text("two")
    assert code_identity("command", settings) == before
