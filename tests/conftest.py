"""Shared by all tests: fixed seeds, no network, a small labelled data set made once a session."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # read on import of the Hugging Face libraries

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import settings

from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store import shards
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.package import card


torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")  # EMT knows them
LEVELS = ("EMT", "EMT-scaled")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: one that comes last has a processor of its own."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, in whatever order they run."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that use the global generator


@pytest.fixture(autouse=True)
def cards_without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures take most of the time of saving a tiny model, and few tests look at them."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(card, "card_pictures", lambda *_: {})


@pytest.fixture(scope="session")
def emt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """extxyz of 118 crystals, alloys, slabs and clusters of 7 metals at two levels of theory.

    EMT-scaled is EMT times 1.1 plus 0.1 eV times the sum of Z: another zero, another slope.
    """
    path = tmp_path_factory.mktemp("emt") / "metals.extxyz"
    rng = np.random.default_rng(0)
    frames = [
        _labelled(atoms, "EMT", rng) for atoms in _crystals() + _alloys() + _slabs_and_clusters()
    ]
    frames += [_labelled(atoms, "EMT-scaled", rng) for atoms in _alloys()]
    ase.io.write(path, frames)
    return path


@pytest.fixture(scope="session")
def data_set(emt_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`emt_file` converted, with many blocks (of 4 structures) and shards (of 16)."""
    folder = tmp_path_factory.mktemp("converted") / "metals"
    config = ConvertConfig(
        columns={"level_of_theory": "level"}, licence="CC0-1.0", description="EMT metals"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_SIZE", 4)
        patch.setattr(conversion, "SHARD_SIZE", 16)
        convert(emt_file, folder, config)
    return folder


@pytest.fixture(scope="session")
def train_structures(data_set: Path) -> list[Structure]:
    """The training structures of `data_set`, in file order."""
    return list(iter_structures(data_set, "train"))


def _crystals() -> list[Atoms]:
    return [bulk(metal, cubic=True) for metal in METALS for _ in range(8)]


def _alloys() -> list[Atoms]:
    alloys = []
    for one, other in combinations(METALS, 2):
        atoms = bulk(one, cubic=True)
        atoms.symbols[2:] = other
        alloys.append(atoms)
    return alloys + [atoms.repeat((2, 1, 1)) for atoms in alloys[::3]]


def _slabs_and_clusters() -> list[Atoms]:
    slabs = [fcc111(metal, (1, 1, 3), vacuum=5.0) for metal in ("Cu", "Pt", "Al")]
    clusters = [
        bulk("Ag", cubic=True),
        bulk("Ni", cubic=True).repeat((2, 1, 1)),
        bulk("Au", cubic=True),
    ]
    for cluster in clusters:
        cluster.set_cell(None)
        cluster.pbc = False
    return slabs + clusters


def _labelled(atoms: Atoms, level: str, rng: np.random.Generator) -> Atoms:
    atoms = atoms.copy()
    atoms.info.clear()
    strain = np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    atoms.calc = EMT()
    slope, zero = (1.0, 0.0) if level == "EMT" else (1.1, 0.1 * atoms.numbers.sum())
    labels = {
        "energy": slope * atoms.get_potential_energy() + zero,
        "forces": slope * atoms.get_forces(),
    }
    if atoms.pbc.all():
        labels["stress"] = slope * atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **labels)
    atoms.info["level"] = level
    return atoms
