"""`evenfield simulate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from typer.testing import CliRunner, Result

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo.engines.errors import EngineError


@pytest.fixture
def copper(tmp_path: Path) -> str:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    path = tmp_path / "copper.extxyz"
    ase.io.write(path, atoms)
    return str(path)


def simulate(copper: str, out: Path, *words: str) -> Result:
    level = ["--level-of-theory", "EMT"]
    command = ["simulate", "evenfield-s", copper, str(out), "steps=4", "every=2", *level]
    return CliRunner().invoke(app, [*command, *words])


def test_dtype_reaches_the_model(copper: str, tmp_path: Path) -> None:
    for dtype in ("float32", "float64"):
        done = simulate(copper, tmp_path / dtype, "--dtype", dtype, "--device", "cpu")
        assert done.exit_code == 0, done.output
        content = json.loads((tmp_path / dtype / "dynamics.json").read_text())
        assert content["model"]["dtype"] == dtype


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "abacus"], "device='abacus': not on this machine"),
        (["--dtype", "half"], "dtype='half': choose float32 or float64"),
    ],
)
def test_options_that_cannot_be_used(
    copper: str, tmp_path: Path, words: list[str], message: str
) -> None:
    done = simulate(copper, tmp_path / "md", *words)
    assert isinstance(done.exception, EngineError)
    assert message in str(done.exception)
    assert not (tmp_path / "md").exists()


def test_words_say_whether_it_relaxed(copper: str, tmp_path: Path) -> None:
    done = simulate(copper, tmp_path / "yes")
    assert "Cu4: relaxed in " in done.output
    done = simulate(copper, tmp_path / "no", "relax_steps=1")
    assert "Cu4: NOT relaxed after 1 steps: largest force" in done.output
    assert "fmax is 0.02" in done.output


def test_a_result_is_replaced_only_when_asked_for(copper: str, tmp_path: Path) -> None:
    out = tmp_path / "md"
    assert simulate(copper, out).exit_code == 0
    before = (out / "dynamics.json").read_bytes()

    done = simulate(copper, out, "seed=1")
    assert isinstance(done.exception, DestinationError)
    assert "a simulation (dynamics.json, simulation.json, trajectory.traj)" in str(done.exception)
    assert (out / "dynamics.json").read_bytes() == before

    # a failure leaves the old result, and its own frames next to it
    done = simulate(copper, out, "seed=1", "temperature=1e9", "time_step=1e3", "--overwrite")
    assert isinstance(done.exception, EvenfieldError)
    assert (out / "dynamics.json").read_bytes() == before
    failed = tmp_path / "md-failed"
    assert f"its frames are in {failed}" in done.exception.remedy
    content = json.loads((failed / "dynamics.json").read_text())
    assert content["failure"] in str(done.exception)
    assert len(ase.io.read(failed / "trajectory.traj", ":")) == len(content["time_ps"])

    (out / "notes.txt").write_text("mine")
    done = simulate(copper, out, "seed=1", "--overwrite")
    assert done.exit_code == 0, done.output
    assert (out / "dynamics.json").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"
    assert len(ase.io.read(out / "trajectory.traj", ":")) == 3


def test_frames_of_a_failed_run_replace_nothing_of_a_user(copper: str, tmp_path: Path) -> None:
    out = tmp_path / "md"
    assert simulate(copper, out).exit_code == 0
    (tmp_path / "md-failed").mkdir()
    (tmp_path / "md-failed" / "thesis.tex").write_text("mine")
    done = simulate(copper, out, "--overwrite")
    assert isinstance(done.exception, DestinationError)
    assert "md-failed: already exists and holds thesis.tex" in str(done.exception)


def test_a_run_that_computed_nothing_leaves_its_place_free(copper: str, tmp_path: Path) -> None:
    other = tmp_path / "oganesson.extxyz"
    ase.io.write(other, bulk("Og", "fcc", a=6.0, cubic=True))
    for out in (tmp_path / "md", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        done = simulate(str(other), out)
        assert "Og: not among" in str(done.exception)
        assert out.exists() == (out.name == "empty")
        assert simulate(copper, out).exit_code == 0


def test_input_is_never_overwritten(copper: str, tmp_path: Path) -> None:
    done = simulate(copper, Path(copper), "--overwrite")
    assert isinstance(done.exception, DestinationError)
    done = simulate(copper, tmp_path, "--overwrite")
    assert isinstance(done.exception, DestinationError)
    assert Path(copper).exists()


def test_model_of_several_levels_asks_for_one(copper: str, tmp_path: Path) -> None:
    """Each level has a line, with its elements."""
    command = ["simulate", "evenfield-s", copper, str(tmp_path / "md"), "steps=4"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, EvenfieldError)
    lines = str(done.exception).splitlines()
    assert "has several levels of theory and no default" in lines[0]
    assert "--level-of-theory" in lines[0]
    assert any(line.strip().startswith("EMT for ") for line in lines)
    assert any(line.strip().startswith("GFN1-xTB for ") for line in lines)
    assert not (tmp_path / "md").exists()
