"""A settings file with thousands of faults is refused at once."""

from __future__ import annotations

import pytest

from evenfield.core.settings import Settings, SettingsError, load_settings


class Steps(Settings):
    """A class to load."""

    max_steps: int = 1


def test_the_first_faults_are_named_and_the_others_counted(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"k{number}: 1\n" for number in range(5000)))
    with pytest.raises(SettingsError, match=r"; and 4980 more$"):
        load_settings(Steps, recipe)
