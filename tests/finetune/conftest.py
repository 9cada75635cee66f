"""A tiny float64 potential whose labels other potentials can be asked to find again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import pytest
import torch

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.predictions import Predictions
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.potential.config import PotentialConfig
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


NEW = "Pt"
PLATINUM_ENERGY = (
    10.0  # eV an atom, which the pretrained model cannot know; EMT's own zero is the crystal
)


@pytest.fixture
def potential() -> Potential:
    """Two heads that differ in everything that a head has."""
    config = PotentialConfig(
        channels=8,
        l_max=2,
        num_layers=2,
        readout_size=12,
        radial_hidden=16,
        cutoff=4.0,
        levels_of_theory=["EMT", "EMT-scaled"],
    )
    potential = Potential(config).double().eval()
    with torch.no_grad():
        potential.readout.element_weight.normal_(std=0.05)
        potential.e0.normal_(std=3.0)
        potential.scale.copy_(torch.tensor([1.5, 0.7]))
    return potential


@pytest.fixture(scope="session")
def structures(train_structures: list[Structure]) -> list[Structure]:
    """Crystals of 4 metals, alloys of 7, a cluster and slabs, all of one level of theory."""
    chosen: list[Structure] = []
    for s in train_structures:
        if (
            s.level_of_theory == "EMT"
            and len(s) <= 4
            and sum(s.group == c.group for c in chosen) < 3
        ):
            chosen.append(s)
    return chosen


@pytest.fixture
def labelled_by() -> Callable[[Potential, Sequence[Structure]], list[Structure]]:
    """Structures with a potential's own energies and forces for labels."""

    def label(potential: Potential, structures: Sequence[Structure]) -> list[Structure]:
        return [label_one(potential, s) for s in structures]

    return label


def label_one(potential: Potential, structure: Structure) -> Structure:
    p: Predictions = predict(potential, [structure])
    head = potential.config.levels_of_theory.index(structure.level_of_theory)
    e0 = potential.e0[head, torch.as_tensor(structure.atomic_numbers)].sum().item()
    return structure.with_labels(
        energy=float(p.energy[0, 1]) + e0, forces=p.forces[..., 1], stress=None
    )


@pytest.fixture(scope="session")
def sets(emt_file, tmp_path_factory) -> dict[str, Path]:
    """The EMT part of the file with and without platinum, and all levels with it."""
    folder = tmp_path_factory.mktemp("sets")
    frames = ase.io.read(emt_file, ":")
    for k, atoms in enumerate(frames):
        atoms.info["split"] = ("test", "train", "train")[k % 3]
        atoms.calc.results["energy"] += PLATINUM_ENERGY * (atoms.symbols == NEW).sum()
    ase.io.write(folder / "all.extxyz", frames)
    ase.io.write(folder / "emt.extxyz", [atoms for atoms in frames if atoms.info["level"] == "EMT"])
    columns = {"level_of_theory": "level", "split": "split"}
    base = ConvertConfig(columns=columns, without_elements=[NEW], licence="CC0-1.0")
    target = ConvertConfig(columns=columns, with_elements=[NEW], licence="CC-BY-4.0")
    convert(folder / "emt.extxyz", folder / "base", base)
    convert(folder / "emt.extxyz", folder / "platinum", target)
    convert(folder / "all.extxyz", folder / "mixed", target)
    return {name: folder / name for name in ("base", "platinum", "mixed")}


@pytest.fixture(scope="session")
def model_folder(sets, tmp_path_factory) -> Path:
    """The folder of a model of 6 metals."""
    config = PretrainConfig(
        data=str(sets["base"]),
        out=str(tmp_path_factory.mktemp("runs") / "metals"),
        licence="Apache-2.0",
        max_steps=120,
        evaluate_every=1000,
        model={
            "channels": 8,
            "l_max": 2,
            "num_layers": 2,
            "readout_size": 16,
            "radial_hidden": 16,
            "cutoff": 4.0,
        },
        stream={"edge_budget": 1500},
        schedule={"warmup_steps": 5},
    )
    return pretrain(config, quiet=True)


@pytest.fixture(scope="session")
def model(model_folder) -> LoadedModel:
    """A model of 6 metals."""
    return load(model_folder)
