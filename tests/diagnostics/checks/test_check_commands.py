"""`evenfield check` as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from typer.testing import CliRunner

from evenfield.cli import app


EMT_HEAD = ["--level-of-theory", "EMT"]


@pytest.fixture
def crystal(tmp_path: Path) -> str:
    path = tmp_path / "copper.cif"
    bulk("Cu", cubic=True).write(path)
    return str(path)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *words])
    assert isinstance(result.exception, (type(None), SystemExit, ValueError, OSError)), (
        result.exception
    )
    return result.exit_code, result.stdout + str(result.exception or "")


def test_symmetry() -> None:
    code, text = run("symmetry", "evenfield-s", *EMT_HEAD)
    assert code == 0, text
    assert text.count(" ok ") == 26 and "FAILED" not in text


def test_symmetry_of_a_broken_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenfield.diagnostics.checks.symmetry.SINGLE", 1e-12)
    code, text = run("symmetry", "evenfield-s", *EMT_HEAD)
    assert code == 1 and "float32 FAILED" in text


def test_phases() -> None:
    code, text = run("phases", "evenfield-s", "Cu", *EMT_HEAD)
    assert code == 0, text
    names, above = zip(*[line.split()[:2] for line in text.splitlines()], strict=True)
    assert (
        sorted(names) == ["bcc", "beta-Sn", "diamond", "fcc", "hcp", "sc"]
        and names[-1] == "diamond"
    )
    assert 0 == float(above[0]) < float(above[3]) < float(above[5]) < 2000


def test_reach(crystal: str) -> None:
    """A small cell is repeated, so that what is felt is one atom and not its images."""
    code, text = run("reach", "evenfield-s", crystal, *EMT_HEAD)
    assert code == 0 and "cannot see beyond 10 A" in text
    near, far, *_ = (float(share) for share in re.findall(r"([0-9.]+) %", text))
    assert near > 90 and 0 < far < 10
    assert 5 < float(re.search(r"none beyond ([0-9.]+) A", text)[1]) < 10


def test_scaling(crystal: str) -> None:
    code, text = run("scaling", "evenfield-s", crystal, *EMT_HEAD)
    assert code == 0 and "a call +" in text and "64 atoms" in text


def test_scaling_beside_tight_binding(tmp_path: Path) -> None:
    """Methane, one molecule in a cell, has an answer; what tight binding cannot do is told in one line."""
    pytest.importorskip("tblite", reason="comes with the demo extra")
    methane = molecule("CH4", cell=[5.0, 5.0, 5.0], pbc=True)
    methane.center()
    methane.write(tmp_path / "methane.cif")
    bulk("LiF", "rocksalt", a=4.03).write(tmp_path / "salt.cif")
    code, text = run(
        "scaling", "evenfield-s", str(tmp_path / "methane.cif"), "--doublings", "2", "--xtb"
    )
    assert code == 0, text
    assert "GFN1-xTB:     20 atoms" in text and "cheaper than GFN1-xTB:" in text
    code, text = run(
        "scaling", "evenfield-s", str(tmp_path / "salt.cif"), "--doublings", "2", "--xtb"
    )
    assert code == 1 and "closed-shell molecules" in text


def test_tight_binding_that_is_not_installed_is_told(
    crystal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, text = run("scaling", "evenfield-s", crystal, "--xtb")
    assert code == 1 and "pip install evenfield[demo]" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["phases", "evenfield-s", "Xx"], "Xx: the model was not trained on it"),
        (["phases", "nowhere", "Cu"], "nowhere"),
        (
            ["phases", "evenfield-s", "Cu", "--level-of-theory", "PBE"],
            "level_of_theory='PBE': the model has",
        ),
        (["reach", "evenfield-s", "CIF", "--index", "4"], "has 4 atoms"),
        (["scaling", "evenfield-s", "XYZ"], "no cell of three vectors"),
    ],
)
def test_a_mistake_is_told(words: list[str], told: str, crystal: str, tmp_path: Path) -> None:
    water = tmp_path / "water.xyz"
    molecule("H2O").write(water)
    code, text = run(*[{"CIF": crystal, "XYZ": str(water)}.get(word, word) for word in words])
    assert code == 1 and told in text
