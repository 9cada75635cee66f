"""Every number that a command takes has limits: nothing that torch or numpy cannot hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evenfield.core.command_line import settings_class
from evenfield.core.settings import SettingsError, load_settings
from evenfield.core.settings_table import groups_of


sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from write_settings import commands_with_settings


CLASSES = sorted({class_path for _, class_path in commands_with_settings()})


def words_for(class_path: str, key: str, kind: str, value: str) -> list[str]:
    required = ["data=d", "out=o"] if class_path.endswith("PretrainConfig") else []
    value = f"[{value}]" if kind.startswith("list") else value
    return [*required, f"{key.replace('NAME', 'x')}={value}"]


@pytest.mark.parametrize("class_path", CLASSES)
def test_integers_that_nothing_can_hold_are_refused(class_path: str) -> None:
    cls = settings_class(class_path)
    for group in groups_of(cls):
        for row in group.rows:
            kinds = row.kind.split(", ")[0].replace("[", " ").replace("]", " ").split()
            if "int" not in kinds or "float" in kinds:
                continue
            with pytest.raises(SettingsError):
                load_settings(cls, None, words_for(class_path, row.key, row.kind, "1" + "0" * 19))


@pytest.mark.parametrize("class_path", CLASSES)
def test_seeds_that_numpy_refuses_are_refused(class_path: str) -> None:
    cls = settings_class(class_path)
    for group in groups_of(cls):
        for row in group.rows:
            name = row.key.rpartition(".")[2]
            # the seed of a pretraining goes to torch, which takes it
            of_torch = class_path.endswith("PretrainConfig") and row.key == "seed"
            if name not in {"seed", "seeds"} or of_torch:
                continue
            with pytest.raises(SettingsError):
                load_settings(cls, None, words_for(class_path, row.key, row.kind, "-1"))


@pytest.mark.parametrize(
    ("class_path", "key"),
    [
        ("pretrain.config:PretrainConfig", "stream.lanes"),
        ("finetune.config:FineTuneConfig", "gradient.rank"),
        ("data_pipelines.demo.generate:GeneratorConfig", "workers"),
        ("pretrain.config:PretrainConfig", "guards.hang_minutes"),
        ("pretrain.monitor.watch:WatchConfig", "every"),
    ],
)
def test_numbers_that_take_all_memory_or_overflow_a_clock_are_refused(class_path, key) -> None:
    cls = settings_class(class_path)
    with pytest.raises(SettingsError, match=f"{key}: Input should be less than or equal to"):
        load_settings(cls, None, words_for(class_path, key, "int", str(2**62)))
