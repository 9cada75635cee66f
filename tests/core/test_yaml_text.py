"""YAML of others: what it means, and that no short text takes long or ends in a traceback."""

from __future__ import annotations

import time

import pytest
import yaml

from evenfield.core.settings import Settings, SettingsError, load_settings
from evenfield.core.yaml_text import YamlTextError, read_yaml_text


class Steps(Settings):
    """A class to load."""

    max_steps: int = 1


def billion() -> str:
    """Nine levels of nine aliases: a billion values in some 300 letters."""
    inner = "&a [x,x,x,x,x,x,x,x,x]"
    for level, name in enumerate("bcdefghi"):
        earlier = "abcdefgh"[level]
        inner = f"&{name} [{inner}{f',*{earlier}' * 8}]"
    return f"max_steps: {inner}"


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "- [1, 2]\n- x", "base: &base {a: 1}\nmore:\n  <<: *base\n  b: [*base, *base]"],
)
def test_other_text_means_what_it_means_to_yaml(text):
    assert read_yaml_text(text) == yaml.safe_load(text)


def test_as_many_levels_as_a_person_would_write_are_read():
    assert read_yaml_text("[" * 90 + "]" * 90) == yaml.safe_load("[" * 90 + "]" * 90)


@pytest.mark.parametrize(
    "text",
    [
        billion(),
        "max_steps: &a [*a]",
        "max_steps: &a {x: *a}",
        "max_steps: " + "[" * 100_000,
        "max_steps: " + "[" * 2000 + "]" * 2000,
        "max_steps: " + "{a: " * 2000 + "}" * 2000,
        "max_steps: 1\nmore:\n  " + "- " * 2000 + "1",
        "max_steps: 2020-99-99",
        f"max_steps: {'9' * 5000}",
        "max_steps: !!int 1" + ":1" * 100_000,
        "max_steps: !!float 1" + ":1" * 100_000 + ".0",
        "max_steps: [",
        # characters that YAML does not allow, as a flipped bit makes them
        "max_steps: 1\0",
        "max_steps: 1\x1a",
    ],
    ids=lambda text: text[:24],
)
def test_every_fault_is_one_error_within_seconds(text, tmp_path):
    before = time.process_time()
    with pytest.raises(YamlTextError):
        read_yaml_text(text)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(SettingsError, match=rf"^{recipe}: not valid YAML"):
        load_settings(Steps, recipe)
    with pytest.raises(SettingsError, match="the value is not valid YAML"):
        load_settings(Steps, None, [text.replace(": ", "=", 1)])
    assert time.process_time() - before < 5


@pytest.mark.parametrize("text", ["1:30", "-190:20:30", "1:30.5", "190:20:30.15"])
def test_digits_between_colons_are_a_text(text):
    """They were a number of base 60, as nobody writes one: 1:30 was 90."""
    assert read_yaml_text(f"a: {text}") == {"a": text}
    assert read_yaml_text(f"{text}: a") == {text: "a"}


@pytest.mark.parametrize("ending", ["", ".0"])
def test_a_long_number_of_base_60_takes_no_time(ending, tmp_path):
    """200 kB took nine seconds, and twice as much four times as long."""
    before = time.process_time()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_steps: 1" + ":1" * 100_000 + ending)
    with pytest.raises(SettingsError, match="max_steps") as caught:
        load_settings(Steps, recipe)
    assert time.process_time() - before < 2
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("max_steps: 1\nmax_steps: 2\n", "lines 1 and 2"),
        ("sources:\n  mine: {a: 1}\n  other: {}\n  mine: {b: 2}\n", "lines 2 and 4"),
        ("loss: {energy: 1, forces: 2, energy: 3}", "lines 1 and 1"),
        ("list:\n- {a: 1, a: 2}", "lines 2 and 2"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text, lines, tmp_path):
    """PyYAML keeps the last one: a corpus lost a source without a word."""
    with pytest.raises(YamlTextError, match=f"twice, in {lines}"):
        read_yaml_text(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(SettingsError, match="twice") as caught:
        load_settings(Steps, recipe, [])
    assert caught.value.file == str(recipe)


def test_keys_of_two_kinds_and_of_two_mappings_are_no_doubles():
    text = "{1: a, '1': b, inner: {1: c}, merged: &m {x: 1}, other: {<<: *m, x: 2}}"
    assert read_yaml_text(text) == yaml.safe_load(text)
