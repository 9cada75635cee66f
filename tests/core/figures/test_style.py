"""How pictures leave memory: names in them are text, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evenfield.core.figures.style import figure_png, plain_log_ticks, save_picture


def figure_with(name: str) -> Figure:
    """The name as title, label, legend and text."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2, 30], [1, 10, 100], label=name)
    axes.set(title=name, xlabel=name, yscale="log")
    plain_log_ticks(axes.yaxis)
    axes.annotate(name, (1, 1))
    axes.legend()
    figure.suptitle(name)
    return figure


@pytest.mark.parametrize(
    "name", ["r$\\badmacro{$", "$x$", "a $ b", "EMT\x1b]0;owned\x07", "\\$\\frac{$"]
)
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    """A pair of dollar signs started a formula, and what is no formula ended in a traceback."""
    png = figure_png(figure_with(name))
    assert png.startswith(b"\x89PNG")
    save_picture(figure_with(name), tmp_path, "picture")
    assert (tmp_path / "picture.svg").stat().st_size > 0


def test_a_formula_is_not_set() -> None:
    """With and without its dollar signs, the same letters must look different."""
    assert figure_png(figure_with("$x$")) != figure_png(figure_with("x"))


def test_ticks_are_plain_numbers() -> None:
    """Formulas are switched off, so a tick that needs one would show its source."""
    figure = figure_with("EMT")
    figure_png(figure)
    for axes in figure.axes:
        for label in [*axes.get_xticklabels(), *axes.get_yticklabels(minor=True)]:
            assert "$" not in label.get_text()
