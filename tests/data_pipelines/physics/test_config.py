"""Settings of physics: what they refuse, and their hash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evenfield.core.settings import Settings, SettingsError, load_settings
from evenfield.data_pipelines.physics.config import PhysicsConfig


class Outer(Settings):
    """Something with physics."""

    physics: PhysicsConfig | None = None


def loaded(*words: str) -> PhysicsConfig:
    physics = load_settings(Outer, None, list(words)).physics
    assert physics is not None
    return physics


def test_a_functional_is_its_numbers() -> None:
    named = loaded("physics.dispersion.functional=PBE")
    assert named.dispersion is not None
    assert (named.dispersion.s8, named.dispersion.a1, named.dispersion.a2) == (
        0.7875,
        0.4289,
        4.4407,
    )
    stored = json.loads(json.dumps(named.model_dump(mode="json")))
    again = PhysicsConfig.model_validate(stored, strict=True)
    assert again == named
    assert again.sha256 == named.sha256


def test_the_hash_is_that_of_every_number() -> None:
    pbe = loaded("physics.dispersion.functional=pbe")
    hashes = {
        pbe.sha256,
        loaded("physics.dispersion.functional=rpbe").sha256,
        loaded("physics.dispersion.functional=pbe", "physics.dispersion.cutoff=12").sha256,
        loaded("physics.coulomb.charges={Na: 1, Cl: -1}").sha256,
    }
    assert len(hashes) == 4
    # data sets and models that are stored already have this one
    assert pbe.sha256.startswith("c4d79b34ed6e779b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["physics.dispersion.functional=pbee"], "functional=pbee is not known: use one of"),
        (
            ["physics.dispersion.functional=pbe", "physics.dispersion.a1=0.5"],
            "functional=pbe has physics.dispersion.a1=0.4289: leave functional out",
        ),
        (["physics.dispersion.a1=0.5"], "'physics.dispersion.s8' is missing"),
        (["physics.coulomb.width=0.4"], "set either charges or electronegativity"),
        (["physics.coulomb.charges={Na: 1, Xx: 1}"], "Xx: not an element symbol"),
        (
            ["physics.coulomb.electronegativity={Na: 1}", "physics.coulomb.hardness={Cl: 1}"],
            "must name the same elements",
        ),
        (
            ["physics.coulomb.electronegativity={Na: 1}", "physics.coulomb.hardness={Na: 0}"],
            "Na: must be above 0",
        ),
        (
            ["physics.coulomb.charges={Na: 1}", "physics.coulomb.width=1.5"],
            "is too short for the widths: set 15",
        ),
        (["physics.coulomb.charges={Na: 1}", "physics.coulomb.net_charge=1"], "net_charge"),
        (["physics={}"], "set dispersion or coulomb"),
    ],
)
def test_what_is_refused(words: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        loaded(*words)
