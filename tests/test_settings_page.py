"""docs/settings.md: written from the classes, and complete."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from evenfield.core.command_line import settings_class
from evenfield.core.settings_table import groups_of


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "docs" / "write_settings.py"
    spec = importlib.util.spec_from_file_location("write_settings", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(), "run: python docs/write_settings.py"


def test_every_command_that_takes_settings_lists_them(script: ModuleType) -> None:
    listed = {words for words, _ in script.commands_with_settings()}
    takes_settings = set()
    for words, command in script.all_commands():
        helps = [getattr(parameter, "help", None) or "" for parameter in command.params]
        if any("key=value" in text for text in helps):
            takes_settings.add(words)
    assert listed == takes_settings
    assert len(listed) == 39


def test_every_setting_has_a_description(script: ModuleType) -> None:
    missing = set()
    for _, class_path in script.commands_with_settings():
        cls = settings_class(class_path)
        for group in groups_of(cls):
            missing |= {f"{class_path} {row.key}" for row in group.rows if not row.description}
    assert not missing
