"""A tiny model that has learned nothing yet, and structures to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk

from evenfield import model_zoo
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.simulation.learn import page


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = PotentialConfig(
        channels=4,
        l_max=1,
        cutoff=4.0,
        readout_size=8,
        radial_hidden=8,
        repulsion=False,
        levels_of_theory=["PBE"],
    )
    record = ModelRecord(name="metals", elements={"PBE": ["Cu", "Au"]}, default_level="PBE")
    folder = tmp_path_factory.mktemp("models") / "metals"
    return model_zoo.save_model(folder, Potential(config), record)


@pytest.fixture
def model(model_folder: Path) -> LoadedModel:
    return model_zoo.load(model_folder)


@pytest.fixture
def starts() -> list[Atoms]:
    copper = bulk("Cu", cubic=True)
    alloy = copper.copy()
    alloy.symbols[:2] = "Au"
    alloy.set_cell(alloy.cell * 1.06, scale_atoms=True)
    return [copper, alloy]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take most of the time of a tiny loop."""
    monkeypatch.setattr(page, "_errors", lambda *_: [])
    monkeypatch.setattr(page, "_radii", lambda *_: [])
    monkeypatch.setattr(page, "pictures", lambda *_: [])
