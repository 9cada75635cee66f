"""Run what README.md and docs/your_own_data.md show, with fewer steps and smaller sizes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield import cli
from evenfield.core.seals import sealed
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OWN_DATA = ROOT / "docs" / "your_own_data.md"
SHORTER = {
    "max_steps=2000": "max_steps=4",
    "num_structures=16": "num_structures=6",
    "steps=500": "steps=5",
    "sizes=[4,16]": "sizes=[4] scratch_steps=2",
    "check sanity": "check sanity suite=quick picoseconds=0.02",
    # a model of four steps does not pass the checks
    "hub publish": "hub publish --allow-failed",
}


def metal(rng: np.random.Generator, symbols: str) -> Atoms:
    """A small rattled metal with EMT labels in its own columns."""
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[:] = rng.choice(list(re.findall("[A-Z][a-z]?", symbols)), len(atoms))
    atoms.rattle(0.1, rng=rng)
    atoms.calc = EMT()
    atoms.info |= {"REF_energy": atoms.get_potential_energy(), "group": str(rng.integers(1000))}
    atoms.arrays["REF_forces"] = atoms.get_forces()
    atoms.calc = None
    return atoms


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the reader of the page has."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    columns = {
        "columns": {"energy": "REF_energy", "forces": "REF_forces"},
        "level_of_theory": "PBE",
    }
    config = ConvertConfig(units={"energy": "eV", "forces": "eV/A"}, **columns)
    ase.io.write("mine.extxyz", [metal(rng, "CuAg") for _ in range(40)])
    ase.io.write("other.extxyz", [metal(rng, "CuAu") for _ in range(40)])
    ase.io.write("structure.cif", bulk("Cu", cubic=True))
    convert("other.extxyz", "runs/other", config.model_copy(update={"test_share": 0.4}))
    return tmp_path


def test_own_data_commands(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", OWN_DATA.read_text(), re.DOTALL)
    lines = "".join(blocks).splitlines()
    commands = [line for line in lines if line.startswith("evenfield")]
    assert len(commands) == 12
    for command in commands:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        _, *words = shlex.split(command, comments=True)
        verdict = 1 if "sanity" in words else 0
        assert run(monkeypatch, *words) == verdict, command
    assert Path("runs/md/trajectory.traj").stat().st_size > 0
    dynamics = json.loads(Path("runs/md/dynamics.json").read_text())
    assert dynamics["model"]["model"].startswith("me/mine@")


def test_python_example(workplace: Path) -> None:
    exec(re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1], {})


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


@pytest.mark.slow
def test_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A toy size leaves all files; a second run completes what was interrupted, and no more."""
    out = tmp_path / "q"
    settings = [
        "num_structures=120",
        "even_test=10",
        "cheap_per_element=1",
        "max_steps=6",
        "num_molecules=40",
        "sizes=[4]",
        "strategies=[refit]",
        "scratch_sizes=[6]",
        "seeds=[0]",
        "scratch_steps=3",
        "md_steps=10",
    ]
    assert run(monkeypatch, "quickstart", out, *settings) == 0
    page = (out / "report" / "report.html").read_text()
    assert "Rare elements, before and after" in page
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "few-shot, eV/A: refit with 4 molecules" in printed
    assert "from scratch with 6" in printed

    # as if the curve had been interrupted before its last row
    curve = out / "fewshot.json"
    content = json.loads(curve.read_text())
    curve.write_text(json.dumps(sealed(content | {"rows": content["rows"][:-1]})))
    curve.with_suffix(".png").unlink()
    capsys.readouterr()
    assert run(monkeypatch, "quickstart", out, *settings) == 0
    assert len(json.loads(curve.read_text())["rows"]) == len(content["rows"])
    assert capsys.readouterr().out.count("kept") == 11

    assert run(monkeypatch, "quickstart", out, "max_steps=7") == 1
    assert "made with other settings" in capsys.readouterr().err
