"""Which head answers: never one that the order of the heads has chosen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo import BadModelError, ModelRecord
from evenfield.model_zoo.package.folder import describe
from evenfield.model_zoo.package.levels import LevelError, default_level, own_levels
from evenfield.model_zoo.package.record import Description

from small_models import rewrite


ELEMENTS = {"PBE": ["Cu"], "EMT": ["Cu", "Au"]}


def record(**facts: object) -> ModelRecord:
    return ModelRecord.model_validate({"name": "copper", "elements": ELEMENTS, **facts})


def energy(model: model_zoo.LoadedModel, **options: str) -> float:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = model.calculator(**options)
    return float(atoms.get_potential_energy())


@pytest.fixture
def apart(folder: Path) -> Path:
    """The small model without a default, and with another E0 in each head, so that they differ."""
    potential, stored = model_zoo.load_model(folder)
    potential.e0[0] = -1.0
    potential.e0[1] = -20.0
    undecided = stored.model_copy(update={"default_level": None})
    return model_zoo.save_model(folder, potential, undecided)


def test_several_levels_without_a_default_are_asked_for(apart: Path) -> None:
    model = model_zoo.load(apart)
    with pytest.raises(LevelError, match="several levels of theory and no default") as refusal:
        model.calculator()

    # a line for each, to choose from
    _, *lines = str(refusal.value).splitlines()
    assert lines == ["  PBE for Cu", "  EMT for Cu Au"]
    assert energy(model, level_of_theory="EMT") < energy(model, level_of_theory="PBE") - 10


def test_stated_default_answers_whatever_the_order_of_the_heads(apart: Path) -> None:
    describe(apart, Description(default_level="EMT"))
    model = model_zoo.load(apart)
    assert model.potential.config.levels_of_theory == ["PBE", "EMT"]
    assert model.calculator().level_of_theory == "EMT"
    assert energy(model) == energy(model, level_of_theory="EMT")

    # an explicit choice still counts more
    assert energy(model, level_of_theory="PBE") > energy(model) + 10


def test_card_shows_a_call_that_works(apart: Path) -> None:
    card = (apart / "README.md").read_text()
    assert '.calculator(level_of_theory="EMT")' in card
    assert "no default" in card

    describe(apart, Description(default_level="EMT"))
    card = (apart / "README.md").read_text()
    assert ".calculator()\n" in card
    assert "the model answers at EMT" in card


def test_only_level_is_the_default_and_members_of_an_ensemble_do_not_count() -> None:
    assert default_level(record(), ["PBE"]) == "PBE"
    members = ["PBE", "PBE, member 1", "PBE, member 2"]
    assert own_levels(members) == ["PBE"]
    assert default_level(record(), members) == "PBE"
    assert default_level(record(), ["PBE", "EMT", "EMT, member 1"]) is None

    # a name that only looks like that of a member is a level of its own
    assert own_levels(["PBE", "HSE, member 1"]) == ["PBE", "HSE, member 1"]


def test_unknown_default_is_refused(apart: Path) -> None:
    with pytest.raises(EvenfieldError, match="default_level=HSE: the model has no such level"):
        describe(apart, Description(default_level="HSE"))

    config = json.loads((apart / "config.json").read_text())
    config["record"]["default_level"] = "HSE"
    rewrite(apart, "config.json", json.dumps(config).encode())
    with pytest.raises(BadModelError, match="has the default 'HSE', which is not one of"):
        model_zoo.load(apart)


def posterior(level: str) -> bytes:
    """The header that a posterior has, and one tensor."""
    from safetensors.numpy import save

    about = json.dumps({"level_of_theory": level, "noise": {}})
    return save({"covariance": np.eye(2)}, metadata={"evenfield": about})


@pytest.mark.parametrize(
    ("training", "level", "expected"),
    [
        ({"finetune": {}}, "EMT", "EMT"),
        # it could come from `finetune attach` just as well
        ({"finetune": {}}, "PBE", None),
        ({}, "EMT", None),
        ({"finetune": {}}, "HSE", None),
    ],
)
def test_older_fine_tuned_model_answers_with_the_head_that_its_posterior_names(
    apart: Path, training: dict, level: str, expected: str | None
) -> None:
    potential, stored = model_zoo.load_model(apart)
    older = stored.model_copy(update={"training": training})
    files = {"posterior.safetensors": posterior(level)}
    model_zoo.save_model(apart, potential, older, attachments=files)
    assert model_zoo.load(apart).record.default_level == expected


@pytest.mark.parametrize(("asked", "meant"), [("pbe", "PBE"), ("E_MT ", "EMT"), ("EMTT", "EMT")])
def test_a_misspelt_level_is_recognised(folder: Path, asked: str, meant: str) -> None:
    model = model_zoo.load(folder)
    with pytest.raises(LevelError, match=f"did you mean '{meant}'. the model has PBE, EMT"):
        model.calculator(level_of_theory=asked)
