"""A record claims no more than was learned, and nobody believes an older one that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo import BadModelError
from evenfield.model_zoo.engines.errors import UnseenElementError
from evenfield.model_zoo.hub.publish import plan_publication

from small_models import rewrite


LEVEL_COUNTS = {"PBE": {"Cu": 20}, "EMT": {"Cu": 12, "Au": 3}}


def change_record(folder: Path, **changes: Any) -> None:
    """Change the stored record, with a manifest that fits, as an older version could have."""
    config = json.loads((folder / "config.json").read_text())
    config["record"] |= changes
    rewrite(folder, "config.json", json.dumps(config).encode())


def gold(model: model_zoo.LoadedModel) -> float:
    atoms = bulk("Au")
    atoms.calc = model.calculator(level_of_theory="EMT")
    return float(atoms.get_potential_energy())


def test_counts_of_levels_are_stored_and_shown(folder: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    counted = record.model_copy(update={"level_counts": LEVEL_COUNTS})
    model_zoo.save_model(folder, potential, counted)

    model = model_zoo.load(folder)
    assert model.record.level_counts == LEVEL_COUNTS
    assert model.record.unlearned() == []
    gold(model)
    assert "use with care: Au (EMT)." in (folder / "README.md").read_text()


@pytest.mark.parametrize("counts", [{"Cu": 12}, {"Cu": 12, "Au": 0}])
def test_element_without_training_structures_is_neither_saved_nor_loaded(
    folder: Path, counts: dict[str, int]
) -> None:
    level_counts = LEVEL_COUNTS | {"EMT": counts}
    potential, record = model_zoo.load_model(folder)
    claimed = record.model_copy(update={"level_counts": level_counts})
    with pytest.raises(EvenfieldError, match="the record lists Au at EMT, but counts no training"):
        model_zoo.save_model(folder, potential, claimed)
    assert model_zoo.load(folder).record == record

    change_record(folder, level_counts=level_counts)
    with pytest.raises(BadModelError, match="lists Au at EMT, but counts no training structure"):
        model_zoo.load(folder)


def test_older_record_that_claims_too_much_loads_but_does_not_guess(folder: Path) -> None:
    change_record(folder, train_counts={"Cu": 20})
    model = model_zoo.load(folder)
    with pytest.raises(UnseenElementError, match="Au: not among the 1 elements"):
        gold(model)

    plan = plan_publication(folder, "me/copper")
    assert plan.lacks == ["training structures of every listed element"]
    with pytest.raises(BadModelError, match="lacks training structures of every listed element"):
        model_zoo.publish(folder, "me/copper", folder.parent / "hub")


def test_older_record_without_any_counts_is_believed(folder: Path) -> None:
    change_record(folder, train_counts={})
    gold(model_zoo.load(folder))
