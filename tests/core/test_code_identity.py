"""A name is told from another version of what it stands for."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["weights.pt", "run.sh", "model/manifest.json"])
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
