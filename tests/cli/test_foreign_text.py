"""Commands on data and models whose names try to be markup, formulas and commands to a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.model_zoo.package.folder import describe
from evenfield.model_zoo.package.record import Description

from small_models import small_model


# markup of rich, a formula of matplotlib, and the title of the window
NAMES = ["[/bad]", "r$\\badmacro{$", "PBE \x1b]0;owned\x07", "a\u202eb"]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (words, done.exception)
    assert "\x1b]" not in done.output
    assert "\u202e" not in done.output
    return done.output


@pytest.mark.parametrize("level", NAMES)
def test_level_of_theory_of_a_data_set(level: str, tmp_path: Path) -> None:
    frames = []
    for number in range(8):
        # extended xyz reads a backslash as the start of an escape
        name = level.replace("\\", "\\\\")
        names = f'structure_id="{number} {name}" level_of_theory="{name}"'
        about = f'energy=-{number} {names} pbc="F F F"'
        frames.append(f"1\nProperties=species:S:1:pos:R:3 {about}\nH 0 0 0\n")
    source = tmp_path / "source.extxyz"
    source.write_text("".join(frames))
    data = tmp_path / "data"
    run("data", "convert", str(source), str(data), "--trust-units")
    run("data", "census", str(data))
    run("data", "inspect", str(data))
    run("data", "weights", str(data))


def test_card_of_a_model(tmp_path: Path) -> None:
    """Whoever publishes a model writes its card."""
    folder = small_model(tmp_path / "model")
    description = Description(description="[/bad] \x1b]0;owned\x07 $\\badmacro{$ a\u202eb")
    describe(folder, description)
    assert "owned" in run("hub", "show", str(folder))
