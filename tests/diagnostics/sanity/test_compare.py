"""`evenfield check compare`: two potentials side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.core.seals import sealed
from evenfield.core.settings import SettingsError
from evenfield.diagnostics.check import CheckResult, Figure
from evenfield.diagnostics.sanity.compare import Comparison, Row, Side, side_of
from evenfield.diagnostics.sanity.config import SanityConfig


MODULE = __name__


class SoftEMT(EMT):
    """EMT of which the stress has the wrong sign, so that elastic constants come out wrong."""

    def calculate(self, *arguments, **options) -> None:
        super().calculate(*arguments, **options)
        if "stress" in self.results:
            self.results["stress"] = -self.results["stress"]


def side(value: float, *, name: str = "one", suite: str = "quick", **bounds: float) -> Side:
    figures = [Figure("error", value, "%", **bounds), Figure("crystals", 3, "")]
    return Side(name, {"suite": suite}, {"lattice": CheckResult(figures)})


def test_a_verdict_that_changed_is_worse_or_better() -> None:
    good, bad = side(1.0, limit=2.0), side(3.0, name="two", limit=2.0)
    (line,) = Comparison(good, bad).lines("worse")
    assert line == "lattice: error: 1 % -> 3 % (at most 2)"
    assert Comparison(good, bad).lines("better") == []
    assert len(Comparison(bad, good).lines("better")) == 1


@pytest.mark.parametrize(
    ("before", "after", "bounds", "expected"),
    [
        (3.0, 3.1, {"limit": 2.0}, "alike"),
        (3.0, 3.3, {"limit": 2.0}, "worse"),
        (66.0, 92.0, {"limit": 0.0}, "worse"),
        (70.0, 62.0, {"at_least": 60.0}, "worse"),
        (float("nan"), float("nan"), {"limit": 2.0}, "alike"),
        (1.0, float("nan"), {"limit": 2.0}, "worse"),
        (3.0, 9.0, {}, None),
    ],
)
def test_which_way_a_figure_went(
    before: float, after: float, bounds: dict[str, float], expected: str | None
) -> None:
    row = Row("x", "y", Figure("y", before, "", **bounds), Figure("y", after, "", **bounds))
    assert row.verdict == expected


def test_a_figure_of_one_side_alone_is_shown_and_not_judged() -> None:
    row = Row("x", "y", None, Figure("y", 1.0, "", limit=2.0))
    assert row.verdict is None
    assert row.change == "not made -> 1"


def test_checks_of_different_suites_are_not_compared() -> None:
    with pytest.raises(EvenfieldError, match="suite=quick and suite=full"):
        Comparison(side(1.0, limit=2.0), side(1.0, suite="full", limit=2.0))


def test_no_check_in_common() -> None:
    other = Side("two", {"suite": "quick"}, {"water": CheckResult([])})
    with pytest.raises(EvenfieldError, match="no check was made of both"):
        Comparison(side(1.0), other)


def test_an_unknown_check_is_refused_before_any_is_made() -> None:
    with pytest.raises(SettingsError, match="there is no 'latice'"):
        side_of("ase.calculators.emt:EMT", None, SanityConfig(checks=["latice"]))


def test_a_wrong_stress_is_named(tmp_path: Path) -> None:
    """EMT as a peer, computed here, and a broken EMT from a folder of results."""
    words = ["checks=[elastic]", "elements=[Cu]", "suite=quick"]
    broken = tmp_path / "broken"
    result = CliRunner().invoke(
        app, ["check", "sanity", "--calculator", f"{MODULE}:SoftEMT", *words, "--out", str(broken)]
    )
    assert (broken / "sanity.json").exists(), result.output

    page = tmp_path / "comparison.html"
    arguments = ["check", "compare", "ase.calculators.emt:EMT", str(broken), *words]
    result = CliRunner().invoke(app, [*arguments, "--page", str(page)])
    assert result.exit_code == 1, result.output
    assert "got worse:" in result.output
    assert "elastic:" in result.output
    assert "data:image/png;base64" in page.read_text()

    again = CliRunner().invoke(app, [*arguments, "--page", str(page)])
    assert "holds a page of evenfield" in str(again.exception)


def test_the_same_results_are_alike(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    content = {
        "model": "a",
        "level_of_theory": "PBE",
        "settings": {"suite": "quick"},
        "passed": True,
        "checks": {"lattice": CheckResult([Figure("error", 1.0, "%", limit=2.0)]).as_dict()},
    }
    text = json.dumps(sealed(content))
    (folder / "sanity.json").write_text(text)
    result = CliRunner().invoke(app, ["check", "compare", str(folder), str(folder)])
    assert result.exit_code == 0, result.output
    assert "0 figures got worse" in result.output

    # one digit could hide that a figure got worse
    (folder / "sanity.json").write_text(text.replace('"value": 1.0', '"value": 3.0'))
    with pytest.raises(EvenfieldError, match=r"sanity\.json: does not match its checksum"):
        side_of(str(folder), None, SanityConfig())


@pytest.mark.parametrize("text", ["{", '{"checks": {"lattice": 3}}', '{"checks": []}'])
def test_a_damaged_result_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "physics.json").write_text(text)
    with pytest.raises(EvenfieldError) as caught:
        side_of(str(tmp_path), None, SanityConfig())
    assert "physics.json" in str(caught.value.file)


def test_an_empty_folder_has_no_results(tmp_path: Path) -> None:
    with pytest.raises(EvenfieldError, match="holds no results of checks"):
        Side.from_folder(tmp_path)
