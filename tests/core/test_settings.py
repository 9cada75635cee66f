"""How settings are listed, and what is refused; how commands share parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from evenfield.core.command_line import CommandLineError, DefaultCommandGroup, share_of_work
from evenfield.core.settings import GivenBy, Settings, SettingsError, load_settings
from evenfield.core.settings_table import as_markdown, as_text
from evenfield.finetune.config import FineTuneConfig


class Noise(Settings):
    """Of the labels."""

    energy: float = Field(default=1.0, gt=0, description="eV/atom")


class Inner(Settings):
    """An inner part."""

    rate: float = Field(default=0.5, ge=0, lt=1, description="share per step")
    seed: int = Field(default=0, description="of the order")


class Outer(Settings):
    """The whole."""

    name: str = Field(description="what it is called")
    kind: Literal["a", "b"] | None = Field(default=None, description="one of two")
    inner: Annotated[Inner, GivenBy(seed="seeds")] = Inner(rate=0.25)
    noise: dict[str, Noise] = Field(default={}, description="by level of theory")
    seeds: list[int] = Field(default=[0, 1], description="of every part")


def test_text_shows_each_key_as_it_is_typed() -> None:
    assert as_text(Outer) == (
        "# settings: The whole.\n"
        "name=...    (str, required)\n"
        "    what it is called\n"
        "kind=null    (a | b or null)\n"
        "    one of two\n"
        "seeds=[0, 1]    (list[int])\n"
        "    of every part\n"
        "\n"
        "# inner: An inner part.\n"
        "inner.rate=0.25    (float, >= 0, < 1)\n"
        "    share per step\n"
        "\n"
        "# noise.NAME: Of the labels.\n"
        "noise.NAME.energy=1.0    (float, > 0)\n"
        "    eV/atom"
    )


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    with pytest.raises(SettingsError, match=r"noise\.a\.energy"):
        load_settings(Outer, None, ["name=x", f"noise.a.energy=.{number.lstrip('-')}"])


@pytest.mark.parametrize("word", ["inner.seed={}", "seeds=[0, {}]"])
@pytest.mark.parametrize("number", [2**63, 10**20, -(10**20), 10**300])
def test_integers_beyond_64_bits_are_refused(word: str, number: int) -> None:
    with pytest.raises(SettingsError, match=r"seeds?: an integer is from -9223372036854775808 to"):
        load_settings(Outer, None, ["name=x", word.format(number)])


@pytest.mark.parametrize("number", ["1e31", "-1e300", str(10**40)])
def test_numbers_that_overflow_float32_are_refused(number: str) -> None:
    with pytest.raises(SettingsError, match=r"noise\.EMT\.energy: .*1e\+30|greater than 0"):
        load_settings(Outer, None, ["name=x", f"noise.EMT.energy={number}"])


def test_integers_of_64_bits_are_taken() -> None:
    settings = load_settings(Inner, None, [f"seed={2**63 - 1}"])
    assert settings.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("kinds=a", "kind"),
        ("seed=3", "seeds"),
        ("inner.rates=0.5", "inner.rate"),
        ("iner.rate=0.5", "inner"),
        ("rate=0.5", "inner.rate"),
        ("noise.EMT.energi=1", "noise.EMT.energy"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_one_that_was_meant(word: str, meant: str) -> None:
    with pytest.raises(SettingsError) as told:
        load_settings(Outer, None, ["name=x", word])
    assert told.value.message.endswith(f"; did you mean {meant}?")


def test_keys_in_the_text_of_a_nested_class_are_spelt_in_full() -> None:
    with pytest.raises(SettingsError) as told:
        load_settings(FineTuneConfig, None, ["source.columns.energy=E"])
    assert "source.columns.energy=E has no unit: add source.units.energy=" in told.value.message
    # nothing is named twice
    assert "source: " not in told.value.message and "source.source" not in told.value.message


def test_a_recipe_may_spell_nested_keys_with_dots(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ninner.rate: 0.25\nnoise.EMT.energy: 2\n")
    nested = load_settings(Outer, None, ["name=x", "inner.rate=0.25", "noise.EMT.energy=2"])
    assert load_settings(Outer, recipe) == nested

    # next to the nested spelling of another key
    recipe.write_text("name: x\nnoise.EMT.energy: 2\nnoise: {PBE: {energy: 3}}\n")
    noise = load_settings(Outer, recipe).noise
    assert {level: row.energy for level, row in noise.items()} == {"PBE": 3, "EMT": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner.rate: 1\ninner: {rate: 2}", "'inner.rate' is given twice"),
        ("inner.rate: 1\ninner: 2", "'inner.rate': inner is a value and has no keys below"),
        ("inner: {deep.rate: 1}", "below another key, dots do not nest"),
        ("iner.rate: 1", "unknown key 'iner' .*did you mean inner"),
    ],
)
def test_dotted_keys_of_a_recipe_that_cannot_be_read(
    tmp_path: Path, text: str, message: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: x\n{text}\n")
    with pytest.raises(SettingsError, match=message) as told:
        load_settings(Outer, recipe)
    assert told.value.file == str(recipe)


def test_a_key_like_no_other_is_answered_without_a_guess() -> None:
    with pytest.raises(SettingsError, match=r"unknown key 'wxyz' \(known here: .*\)$"):
        load_settings(Outer, None, ["name=x", "wxyz=1"])


def test_markdown_escapes_bars() -> None:
    lines = as_markdown(Outer).splitlines()
    assert "| `name` | str | required | what it is called |" in lines
    assert r"| `kind` | a \| b or null | `null` | one of two |" in lines


def test_key_that_is_given_elsewhere_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"inner\.seed has no effect here: set seeds"):
        load_settings(Outer, None, ["name=x", "inner.seed=3"])
    loaded = load_settings(Outer, None, ["name=x", "inner.rate=0.1"])
    assert Outer.model_validate(loaded.model_dump()) == loaded


@pytest.mark.parametrize("task", ["3", "0/2", "3/2", "a/b", "-1/2", "/"])
def test_share_of_work_is_checked(task: str) -> None:
    with pytest.raises(CommandLineError, match=f"--task {task}: write K/N"):
        share_of_work(task)


def test_share_of_work() -> None:
    assert share_of_work("2/3") == (2, 3)
    assert share_of_work(None) is None


def test_name_of_the_default_command_can_be_left_out() -> None:
    app = typer.Typer(cls=DefaultCommandGroup)

    @app.command()
    def run(words: list[str], fast: bool = False) -> None:
        typer.echo(f"run {words} {fast}")

    @app.command()
    def watch(folder: str) -> None:
        typer.echo(f"watch {folder}")

    for words, output in (
        (["a=1", "--fast"], "run ['a=1'] True\n"),
        (["--fast", "a=1"], "run ['a=1'] True\n"),
        (["run", "a=1"], "run ['a=1'] False\n"),
        (["watch", "x"], "watch x\n"),
    ):
        assert CliRunner().invoke(app, words).output == output
    assert "watch" in CliRunner().invoke(app, ["--help"]).output
