"""One name of a level of theory in two spellings: found, and never more than that."""

from __future__ import annotations

import pytest

from evenfield.core.errors import EvenfieldError
from evenfield.core.level_names import (
    likely_meant,
    plain_name,
    refuse_other_spelling,
    refuse_two_spellings,
    spelt_alike,
    two_spellings,
)


SPELLINGS = [
    ("MP PBE", "mp_pbe"),
    ("MP_PBE", "MP_PBE "),
    ("r2SCAN", "R2-scan"),
    ("PBE", "\N{FULLWIDTH LATIN CAPITAL LETTER P}BE"),
    ("r\N{SUPERSCRIPT TWO}SCAN", "r2SCAN"),
    ("Ge\u0301", "G\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ("PBE", "P\N{ZERO WIDTH SPACE}BE"),
    ("STRASSE", "stra\N{LATIN SMALL LETTER SHARP S}e"),
]
DIFFERENT = [
    ("PBE", "PBE+U"),
    ("PBE", "PBEsol"),
    ("PBE0", "PBE"),
    ("EMT", "EMT-scaled"),
    ("PBE, member 1", "PBE, member 11"),
    ("PBE(D3)", "PBE"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_two_spellings_are_found(one, other):
    assert plain_name(one) == plain_name(other)
    assert spelt_alike(one, ["HF", other]) == other
    assert two_spellings(["HF", one, other]) == (one, other)
    with pytest.raises(EvenfieldError) as refusal:
        refuse_two_spellings([one, other], EvenfieldError, file="a.xyz", remedy="choose")
    assert repr(one) in str(refusal.value)
    assert repr(other) in str(refusal.value)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_names_stay_apart(one, other):
    assert spelt_alike(one, [one, other]) is None
    assert two_spellings([one, other, one]) is None


def test_only_a_new_name_is_another_spelling_of_a_known_one():
    def check(*names):
        refuse_other_spelling(
            names,
            ["MP PBE", "HF"],
            EvenfieldError,
            owner="the model",
            file="data",
            remedy=lambda other: f"name it {other}",
        )

    check("HF", "MP PBE", "r2SCAN")
    with pytest.raises(
        EvenfieldError, match=r"data: .*'mp_pbe' is .* 'MP PBE' of the model"
    ) as told:
        check("HF", "mp_pbe")
    assert told.value.remedy == "name it MP PBE"


def test_likely_meant_prefers_another_spelling():
    assert likely_meant("mp pbe", ["MP_PBE+U", "MP_PBE"]) == "MP_PBE"
    assert likely_meant("r2SCNA", ["PBE", "r2SCAN"]) == "r2SCAN"
    assert likely_meant("HF", ["PBE", "r2SCAN"]) is None
