"""Data that cannot become a usable model are refused before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain import run
from evenfield.pretrain.data_checks import held_out_split, notes_on_data
from evenfield.pretrain.run import pretrain


Change = Callable[[int, Structure], Structure]


@pytest.fixture
def changed(train_structures, tmp_path) -> Callable[[Change], str]:
    """A data set of twelve structures of EMT, each changed by its number."""

    def write(change: Change) -> str:
        structures = [one for one in train_structures if one.level_of_theory == "EMT"][:12]
        parts = [change(number, one) for number, one in enumerate(structures)]
        write_data_set(parts, tmp_path / "data", {"file": "one", "sha256": ""}, ConvertConfig())
        return str(tmp_path / "data")

    return write


def part(number: int, structure: Structure) -> Structure:
    return replace(structure, split="test" if number < 3 else "train")


def refusal(run_config, data: str, monkeypatch) -> str:
    """The text of the error of a run that must not reach the building of its model."""
    monkeypatch.setattr(run, "build_potential", None)
    config = run_config(data=data)
    with pytest.raises(EvenfieldError) as told:
        pretrain(config, quiet=True)
    assert not Path(config.out).exists()
    return str(told.value)


def test_level_of_theory_without_training_energies(run_config, changed, monkeypatch):
    """Its head would have no element with an E0, and the model would refuse them all."""

    def change(number, structure):
        if number % 3:
            return part(number, structure)
        other = replace(structure, level_of_theory="PBE").with_labels(energy=None)
        return replace(other, split="train")

    text = refusal(run_config, changed(change), monkeypatch)
    assert "has no training energy at the level of theory PBE" in text


def test_default_level_that_is_not_trained(run_config, changed, monkeypatch):
    monkeypatch.setattr(run, "build_potential", None)
    config = run_config(data=changed(part), default_level="PBE")
    with pytest.raises(EvenfieldError, match="default_level=PBE: no training structure has this"):
        pretrain(config, quiet=True)


def test_no_energies_at_all(run_config, changed, monkeypatch):
    data = changed(lambda number, structure: part(number, structure.with_labels(energy=None)))
    text = refusal(run_config, data, monkeypatch)
    assert "has no training energy at the level of theory EMT" in text


def test_nothing_to_test_on_at_a_level_that_is_trained(run_config, changed, monkeypatch):
    def change(number, structure):
        held_out = part(number, structure)
        return replace(held_out, level_of_theory="PBE") if held_out.split == "test" else held_out

    text = refusal(run_config, changed(change), monkeypatch)
    assert "no structure to test on at a level of theory that it trains on (EMT)" in text


def test_held_out_level_is_noted_and_another_split_judges(run_config, changed):
    def change(number, structure):
        held_out = part(number, structure)
        if number == 4:
            held_out = replace(held_out, split="valid")
        return replace(held_out, level_of_theory="PBE") if held_out.split == "test" else held_out

    data = run_config(data=changed(change)).open_data()
    assert notes_on_data(data) == [
        "level of theory PBE has no training structure: it gets no head, and its structures "
        "(3 of test) are left out of the evaluation"
    ]
    assert held_out_split(data) == "valid"


def test_default_level_must_be_one_of_the_data(run_config, data_set):
    """Found before the training, and not when the model is saved."""
    config = run_config(data=str(data_set), default_level="HSE")
    with pytest.raises(EvenfieldError, match="default_level=HSE: no training structure"):
        pretrain(config, quiet=True)
    assert not Path(config.out).exists()


def test_stated_default_and_counts_of_each_level_are_in_the_record(run_config, data_set):
    folder = pretrain(run_config(default_level="EMT-scaled", max_steps=1), quiet=True)
    model = load(folder)
    assert model.potential.config.levels_of_theory[0] != "EMT-scaled"
    assert model.calculator().level_of_theory == "EMT-scaled"

    counted: dict[str, Counter[str]] = {}
    for structure in iter_structures(data_set, "train"):
        symbols = set(structure.to_atoms().symbols)
        counted.setdefault(structure.level_of_theory, Counter()).update(symbols)
    assert model.record.level_counts == counted
    assert model.record.unlearned() == []


def test_test_structures_in_the_training_of_another_set_are_noted(
    run_config, train_structures, tmp_path
):
    """Nobody else can know: each conversion sees its own source only."""
    structures = [one for one in train_structures if one.level_of_theory == "EMT"][:12]
    folders = []
    for name, first in (("one", 0), ("two", 2)):
        parts = [part(number, one) for number, one in enumerate(structures[first:])]
        out = tmp_path / name
        write_data_set(parts, out, {"file": name, "sha256": name}, ConvertConfig())
        folders.append(str(out))
    notes = notes_on_data(run_config(data=folders).open_data())
    # structures 0, 1, 2 are held out by the first set, and 2, 3, 4 by the second
    assert len(notes) == 1
    assert notes[0].startswith(f"2 of 3 test structures of {folders[1]} have near copies in the")


def test_default_level_in_another_spelling_is_named(run_config, data_set):
    with pytest.raises(EvenfieldError, match="did you mean 'EMT-scaled'"):
        pretrain(run_config(data=str(data_set), default_level="emt_scaled"), quiet=True)
