"""A run that begins with the weights of a finished model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase.data import atomic_numbers

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.package.record import TrainingData
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.checkpoints.run_folder import Resume
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.errors import ResumeError
from evenfield.pretrain.run import pretrain
from evenfield.pretrain.start_from import Start

from optimizer_steps import LEVELS, MODEL


Build = Callable[..., PretrainConfig]


@pytest.fixture(scope="module")
def finished(data_set, tmp_path_factory) -> Path:
    """A model of a few steps."""
    settings = {
        "data": str(data_set),
        "out": str(tmp_path_factory.mktemp("finished") / "run"),
        "max_steps": 12,
        "model": MODEL,
        "stream": {"edge_budget": 1500, "window_blocks": 3},
        "schedule": {"warmup_steps": 3},
        "seed": 5,
    }
    folder = pretrain(PretrainConfig.model_validate(settings), quiet=True)
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def base(finished: Path) -> LoadedModel:
    return load(finished)


def with_levels(base: LoadedModel, levels: list[str]) -> Potential:
    """A fresh potential like that of the model, for other levels of theory."""
    torch.manual_seed(11)
    config = base.potential.config.model_copy(update={"levels_of_theory": levels})
    return Potential(config)


def test_heads_are_found_by_name(base: LoadedModel, train_structures) -> None:
    potential = with_levels(base, ["new", *reversed(base.potential.config.levels_of_theory)])
    Start(base).take_over(potential, [])

    known = [atomic_numbers[symbol] for symbol in base.record.trained_symbols(LEVELS[0])]
    structures = [
        structure
        for structure in train_structures
        if structure.level_of_theory == LEVELS[0] and set(structure.elements.tolist()) <= set(known)
    ][:4]
    expected = predict(base.potential, structures)
    found = predict(potential.eval(), structures)
    assert found.forces[..., 1] == pytest.approx(expected.forces[..., 1], abs=1e-6)
    assert found.energy[:, 1] == pytest.approx(expected.energy[:, 1], abs=1e-6)


def test_what_the_model_does_not_know_stays_as_it_was_built(base: LoadedModel) -> None:
    level = LEVELS[0]
    potential = with_levels(base, [level, "new"])
    potential.e0[:] = 7.0
    fresh = potential.readout.weight.detach().clone()
    unknown = atomic_numbers["Rn"]
    assert "Rn" not in base.record.trained_symbols(level)

    notes = Start(base).take_over(potential, [])

    assert potential.e0[0, unknown] == 7.0
    assert (potential.e0[1] == 7.0).all()
    assert torch.equal(potential.readout.weight[1], fresh[1])
    assert not torch.equal(potential.readout.weight[0], fresh[0])
    assert any("new, with readouts of their own: new" in note for note in notes)


def test_what_is_left_behind_is_named(base: LoadedModel) -> None:
    level = LEVELS[0]
    learned = base.record.trained_symbols(level)
    notes = Start(base).left_behind({level: ["Cu", "Au"], "new": ["H"]})
    assert notes[0] == f"levels of theory that are left behind: {LEVELS[1]}"
    symbols = [symbol for symbol in learned if symbol not in ("Cu", "Au")]
    assert "Ag" in symbols
    assert f"left behind at {level}" in notes[1]
    assert sorted(notes[1].rpartition(": ")[2].split(", ")) == sorted(symbols)
    assert not Start(base).left_behind(
        {level: base.record.trained_symbols(level) for level in LEVELS}
    )


def test_a_new_level_that_shares_starts_like_one_that_is_known(base: LoadedModel) -> None:
    potential = with_levels(base, ["new", LEVELS[0]])
    Start(base).take_over(potential, ["new", LEVELS[0]])
    assert torch.equal(potential.readout.weight[0], potential.readout.weight[1])
    assert potential.scale[0] == potential.scale[1]


def test_the_run_begins_at_the_error_of_the_model(
    run_config: Build, finished: Path, base: LoadedModel
) -> None:
    # a learning rate that moves nothing: what is evaluated are the weights of the start
    config = run_config(
        start_from=str(finished), max_steps=1, optimizer={"learning_rate": 1e-12}, seed=9
    )
    folder = pretrain(config, quiet=True)
    assert folder is not None
    model = load(folder)

    assert base.evaluation is not None
    assert model.evaluation is not None
    assert model.evaluation.force_mae == pytest.approx(base.evaluation.force_mae, rel=1e-4)
    assert model.record.base_model == base.reference
    # a path of this machine is nobody's business
    assert str(finished) not in json.dumps(model.record.model_dump(mode="json"))
    # the same data are not listed twice
    assert len(model.record.training_data) == len(base.record.training_data)


def test_a_model_of_another_size_is_refused_before_anything_is_written(
    run_config: Build, finished: Path
) -> None:
    config = run_config(start_from=str(finished), model={**MODEL, "readout_size": 8})
    with pytest.raises(EvenfieldError, match="was built with readout_size=") as caught:
        pretrain(config, quiet=True)
    size = load(finished).potential.config.readout_size
    assert f"set model.readout_size={size}, or leave start_from out" in str(caught.value.remedy)
    assert not Path(config.out).exists()


def test_a_run_may_widen_the_core_switch_of_its_start(
    run_config: Build, finished: Path, capsys
) -> None:
    """The weights fit, and the training goes on with a network that is silent further out."""
    config = run_config(start_from=str(finished), max_steps=1, model={**MODEL, "whole_from": 0.6})
    folder = pretrain(config)
    assert folder is not None
    assert load(folder).potential.config.network.whole_from == 0.6
    before = load(finished).potential.config.network.whole_from
    printed = " ".join(capsys.readouterr().out.split())
    assert f"model.whole_from is 0.6; it was {before} in the start model" in printed


@pytest.mark.parametrize("resume", ["no", "auto"])
def test_a_level_of_the_model_in_another_spelling_is_refused(
    run_config: Build, finished: Path, train_structures, tmp_path: Path, resume: Resume
) -> None:
    """It was taken for a new level, and the head that the model had learned was forgotten."""
    level = LEVELS[0]
    renamed = [
        replace(one, level_of_theory=f"{level.lower()} ")
        for one in train_structures
        if one.level_of_theory == level
    ]
    data = tmp_path / "renamed"
    parts = [
        replace(one, split="test" if place < 4 else "train") for place, one in enumerate(renamed)
    ]
    write_data_set(parts, data, {"file": "x", "sha256": "x"}, ConvertConfig())
    config = run_config(data=str(data), start_from=str(finished))
    problem = rf"'{level.lower()} ' is spelt almost like '{level}' of start_from="
    with pytest.raises(EvenfieldError, match=problem) as caught:
        pretrain(config, resume=resume, quiet=True)
    assert f"level_of_theory={level!r} if it is the same" in str(caught.value.remedy)
    assert not list(Path(config.out).glob("model"))


def test_a_resumed_run_keeps_its_own_weights(
    run_config: Build, finished: Path, base: LoadedModel, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    config = run_config(start_from=str(moved), max_steps=3, checkpoints={"every": 3})
    pretrain(config, quiet=True)

    # a run that goes on needs the model no longer, and its record still names it
    shutil.rmtree(moved)
    longer = config.model_copy(update={"max_steps": 4})
    folder = pretrain(longer, resume="must", quiet=True)
    assert folder is not None
    assert load(folder).record.base_model == base.reference

    other = longer.model_copy(update={"start_from": None, "max_steps": 5})
    with pytest.raises(ResumeError, match="start_from cannot change"):
        pretrain(other, resume="must", quiet=True)


def test_data_of_the_model_stay_in_the_record(base: LoadedModel) -> None:
    known = base.record.training_data[0]
    other = known.model_copy(update={"name": "other", "sha256": "f" * 64})
    listed = Start(base).record.with_data([other])
    assert [source.name for source in listed] == [known.name, "other"]
    again: list[TrainingData] = Start(base).record.with_data([known])
    assert again == [known]


def test_energies_of_another_zero_are_told(base: LoadedModel, train_structures) -> None:
    potential = with_levels(base, base.potential.config.levels_of_theory)
    start = Start(base)
    start.take_over(potential, [])
    of_level = [one for one in train_structures if one.level_of_theory == LEVELS[0]][:6]
    assert start.notes_on_levels(potential.eval(), of_level) == []
    moved = []
    for one in of_level:
        assert one.energy is not None
        moved.append(one.with_labels(energy=one.energy + 5.0 * len(one)))
    (note,) = start.notes_on_levels(potential, moved)
    assert "is this the level of theory of the model?" in note
