"""Runs whose potential learns charges: how they start, what they refuse, and what refits change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.gradient.strategies.full import Full
from evenfield.finetune.run import finetune
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.potential.charges import energy_at_start
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.run import pretrain

from physics_beside import LEVEL, SALT, salt, write_salts


pytest.importorskip("torchpme")

PHYSICS = PhysicsConfig.model_validate(SALT)


def converted(frames: list[Atoms], folder: Path, **settings: Any) -> Path:
    ase.io.write(folder / "frames.extxyz", frames)
    own = {"level_of_theory": LEVEL, "trust_units": True, "split_by": "structure"} | settings
    convert(folder / "frames.extxyz", folder / "data", ConvertConfig.model_validate(own), workers=1)
    return folder / "data"


def recipe(data: Path, out: Path, **more: Any) -> PretrainConfig:
    model = {"channels": 4, "l_max": 1, "num_layers": 1, "readout_size": 8, "charges": True}
    settings = {
        "data": str(data),
        "out": str(out),
        "max_steps": 30,
        "model": model,
        "stream": {"edge_budget": 3000},
        "evaluate_every": 100,
    }
    return PretrainConfig.model_validate(settings | more)


def labelled_by_the_start(seed: int) -> Atoms:
    """A salt whose energy is that of the charges that training starts with, and 2 eV an atom."""
    atoms = salt(seed)
    atoms.rattle(0.4, seed=seed)
    energy, forces = energy_at_start(Structure.from_atoms(atoms, LEVEL, "a"), 1.0)
    atoms.calc = SinglePointCalculator(atoms, energy=energy + 2.0 * len(atoms), forces=forces)
    return atoms


def test_the_start_leaves_nothing_of_labels_that_its_charges_explain(tmp_path: Path) -> None:
    data = converted([labelled_by_the_start(seed) for seed in range(24)], tmp_path)
    without_repulsion = {"channels": 4, "charges": True, "repulsion": False}
    config = recipe(data, tmp_path / "run", model=without_repulsion)
    potential = build_potential(config, Collection([str(data)]))
    # the scale is the RMS of the forces that are left, and has a floor
    assert float(potential.scale[0]) == pytest.approx(0.1)
    assert float(potential.e0[0, 11] + potential.e0[0, 17]) == pytest.approx(4.0, abs=1e-3)

    without = recipe(data, tmp_path / "run", model={"channels": 4, "repulsion": False})
    assert float(build_potential(without, Collection([str(data)])).scale[0]) > 0.12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("charges")
    write_salts(folder / "frames.extxyz", 24, PHYSICS)
    data = converted(ase.io.read(folder / "frames.extxyz", ":"), folder)
    pretrain(recipe(data, folder / "run"), quiet=True)
    return load(folder / "run" / "model")


def weights_of_charges(potential: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = potential.state_dict()
    return {name: value for name, value in state.items() if name.startswith("charges.")}


def test_a_run_learns_charges_and_stores_them(model: LoadedModel) -> None:
    assert model.potential.config.charges
    learned = weights_of_charges(model.potential)
    # they start at zero
    assert learned["charges.weight"].abs().max() > 1e-3
    atoms = salt(50)
    atoms.calc = model.calculator()
    charges = atoms.get_charges()
    assert charges[atoms.numbers == 11].min() > 0.1
    assert charges[atoms.numbers == 17].max() < -0.1


@pytest.mark.parametrize("strategy", ["refit", "wide"])
def test_a_refit_leaves_the_charges_alone(
    strategy: str, model: LoadedModel, tmp_path: Path
) -> None:
    write_salts(tmp_path / "new.extxyz", 8, PHYSICS, first=400)
    settings = {
        "strategy": strategy,
        "valid_share": 0.25,
        "source": {"level_of_theory": LEVEL, "trust_units": True},
    }
    config = FineTuneConfig.model_validate(settings)
    result = finetune(model, tmp_path / "new.extxyz", config, work=tmp_path / "work")
    before = weights_of_charges(model.potential)
    for name, value in weights_of_charges(result.potential).items():
        assert torch.equal(value, before[name])


def test_training_everything_trains_the_charges(model: LoadedModel) -> None:
    with Full().learning(model.potential, GradientConfig(), []) as groups:
        learning = {id(one) for group in groups for one in group.parameters}
    for name, parameter in model.potential.named_parameters():
        assert id(parameter) in learning, name


def test_labels_without_charges_are_refused(tmp_path: Path) -> None:
    write_salts(tmp_path / "frames.extxyz", 12, PHYSICS)
    frames = ase.io.read(tmp_path / "frames.extxyz", ":")
    data = converted(frames, tmp_path, physics=SALT)
    with pytest.raises(EvenfieldError, match=r"model.charges=true would learn it again"):
        pretrain(recipe(data, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_wire_is_refused_before_the_first_step(tmp_path: Path) -> None:
    frames = []
    for seed in range(12):
        atoms = labelled_by_the_start(seed)
        if seed == 5:
            atoms.pbc = (True, False, False)
        frames.append(atoms)
    data = converted(frames, tmp_path)
    with pytest.raises(PhysicsError, match="is periodic in one direction only"):
        pretrain(recipe(data, tmp_path / "run"), quiet=True)
