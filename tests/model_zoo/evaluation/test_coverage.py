"""Structures that a model cannot answer for are left out of its errors, counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.evaluation.coverage import Coverage

from small_models import small_model


ELEMENTS = {"PBE": ["Cu"], "EMT": ["Cu", "Au"]}


def structure(atoms: Atoms, level: str, name: str) -> Structure:
    return Structure.from_atoms(atoms, level, name, name, split="test", energy=-3.0)


def convert(structures: list[Structure], folder: Path) -> None:
    """A data set of these test structures; no data set is without any to train on."""
    copper = Structure.from_atoms(bulk("Cu"), "EMT", "first", "first", split="train", energy=-1.0)
    source = {"file": "made here", "sha256": ""}
    write_data_set([copper, *structures], folder, source, ConvertConfig())


@pytest.fixture
def structures() -> list[Structure]:
    """Two of five can be answered for by a model of ELEMENTS."""
    copper = bulk("Cu", cubic=True)
    gold = bulk("Au", cubic=True)
    alloy = copper.copy()
    alloy[0].symbol = "Ag"
    return [
        structure(copper, "PBE", "copper"),
        structure(gold, "EMT", "gold"),
        # learned, but at the other level of theory
        structure(gold, "PBE", "gold at PBE"),
        structure(alloy, "EMT", "alloy"),
        structure(copper, "SCAN", "copper at SCAN"),
    ]


def test_only_known_levels_and_elements_pass(structures: list[Structure]) -> None:
    coverage = Coverage(ELEMENTS)
    passed = [passing.structure_id for passing in coverage.answerable(structures)]
    assert passed == ["copper", "gold"]
    assert coverage.left_out == [
        "1 at 'SCAN': the model knows PBE, EMT",
        "1 at 'EMT' with Ag, not learned at this level",
        "1 at 'PBE' with Au, not learned at this level",
    ]


def test_long_lists_are_cut_short() -> None:
    coverage = Coverage({f"level {number}": ["Cu"] for number in range(300)})
    left = coverage.answerable([structure(bulk("Cu"), "other", "a")])
    assert list(left) == []
    (sentence,) = coverage.left_out
    assert sentence.endswith("level 9 and 290 more")


def test_the_command_says_what_it_leaves_out(structures: list[Structure], tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    convert(structures, tmp_path / "data")
    words = ["evaluate", str(model), str(tmp_path / "data"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "2 structures of test" in result.output
    assert "left out: 1 at 'SCAN'" in result.output
    assert "left out: 1 at 'EMT' with Ag" in result.output
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert summary["num_structures"] == 2


def test_the_command_refuses_a_data_set_that_is_left_out_as_a_whole(
    structures: list[Structure], tmp_path: Path
) -> None:
    model = small_model(tmp_path / "model")
    convert(structures[2:], tmp_path / "data")
    words = ["evaluate", str(model), str(tmp_path / "data"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    message = " ".join(str(result.exception or result.output).split())
    assert "can answer for none of the structures of test: 1 at 'SCAN'" in message
    assert not (tmp_path / "out").exists()


def test_the_command_overwrites_nothing_unless_asked(
    structures: list[Structure], tmp_path: Path
) -> None:
    model = small_model(tmp_path / "model")
    convert(structures, tmp_path / "data")
    out = tmp_path / "out"
    words = ["evaluate", str(model), str(tmp_path / "data"), str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    (out / "notes.txt").write_text("mine")
    older = '{"split": "test", "num_structures": 7}'
    (out / "evaluation.json").write_text(older)

    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, DestinationError)
    assert "already exists and holds an evaluation" in str(refused.exception)
    assert (out / "evaluation.json").read_text() == older

    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert json.loads((out / "evaluation.json").read_text())["num_structures"] == 2
    assert (out / "notes.txt").read_text() == "mine"

    # a run has a file of this name, which a report reads
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "evaluation.json").write_text("of the run")
    words[-1] = str(run)
    refused = CliRunner().invoke(app, [*words, "--overwrite"])
    assert "a training run" in str(refused.exception)
    assert (run / "evaluation.json").read_text() == "of the run"
