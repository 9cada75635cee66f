"""Models with physics: trained on what it leaves, and everywhere answering for the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient.replay import ReplayConfig, replay_structures
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.target import open_target
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.package.folder import save_model
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.fit import fit

from physics_beside import LEVEL, SALT, label_salt, physics_of_atoms, salt, write_salts


pytest.importorskip("torchpme")

PHYSICS = PhysicsConfig.model_validate(SALT)
OTHER = {"coulomb": {"charges": {"Na": 0.5, "Cl": -0.5}}}


def converted(source: Path, folder: Path, physics: dict[str, Any] | None) -> Path:
    settings = {"level_of_theory": LEVEL, "physics": physics, "trust_units": True}
    convert(source, folder, ConvertConfig.model_validate(settings), workers=1)
    return folder


def recipe(data: Path | list[Path], out: Path, **more: Any) -> PretrainConfig:
    names = [str(one) for one in data] if isinstance(data, list) else str(data)
    settings = {
        "data": names,
        "out": str(out),
        "max_steps": 30,
        "model": {"channels": 4, "l_max": 1, "num_layers": 1, "readout_size": 8},
        "stream": {"edge_budget": 3000},
        "evaluate_every": 100,
    }
    return PretrainConfig.model_validate(settings | more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, its data sets with, without and with other physics, and a model."""
    folder = tmp_path_factory.mktemp("beside")
    source = write_salts(folder / "salts.extxyz", 24, PHYSICS)
    converted(source, folder / "residual", SALT)
    converted(source, folder / "plain", None)
    converted(source, folder / "other", OTHER)
    pretrain(recipe(folder / "residual", folder / "run"), quiet=True)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> LoadedModel:
    return load(place / "run" / "model")


def whole(model: LoadedModel, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and stress of the calculator in float64."""
    asked = atoms.copy()
    asked.calc = model.calculator(dtype="float64")
    return asked.get_potential_energy(), asked.get_forces(), asked.get_stress(voigt=False)


def test_the_model_takes_physics_from_its_data(place: Path, model: LoadedModel) -> None:
    assert model.potential.config.physics == PHYSICS
    stored = json.loads((place / "run" / "model" / "config.json").read_text())["architecture"]
    assert stored["physics"]["coulomb"]["charges"] == SALT["coulomb"]["charges"]
    card = (place / "run" / "model" / "README.md").read_text()
    assert f"fixed charges ({PHYSICS.sha256[:8]})" in card


def test_the_calculator_answers_for_the_whole(model: LoadedModel) -> None:
    """Its answer minus that of the network is the physics, and nearer to the labels."""
    atoms = salt(100)
    truth = label_salt(atoms, PHYSICS)
    energy, forces, _ = whole(model, atoms)
    short_ranged = label_salt(atoms, None)
    known = physics_of_atoms(PHYSICS, atoms)
    error = np.abs(forces - truth.get_forces()).mean()
    # without the physics, the forces would be those that were learned
    without = np.abs(forces - known.forces - truth.get_forces()).mean()
    assert error < 0.7 * without
    assert abs(energy - truth.get_potential_energy()) < 0.2 * abs(known.energy)
    assert abs(energy - short_ranged.get_potential_energy()) > 0.5 * abs(known.energy)


def test_derivatives_are_those_of_the_energy(model: LoadedModel) -> None:
    atoms = salt(101)
    _, forces, stress = whole(model, atoms)
    step = 1e-3
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        ends.append(whole(model, moved)[0])
    assert forces[2, 1] == pytest.approx(-(ends[0] - ends[1]) / (2 * step), abs=1e-5)
    ends = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array * (1 + sign * step), scale_atoms=True)
        ends.append(whole(model, strained)[0])
    slope = (ends[0] - ends[1]) / (2 * step) / atoms.get_volume()
    assert np.trace(stress) == pytest.approx(slope, abs=1e-5)


def test_results_of_atoms_add_up_and_charges_are_there(model: LoadedModel) -> None:
    atoms = salt(102)
    atoms.calc = model.calculator()
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
    assert atoms.get_charges().tolist() == pytest.approx([0.8, -0.8] * 4)


def test_saved_again_the_model_is_the_same(model: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "again", model.potential, model.record, model.evaluation)
    again = load(tmp_path / "again")
    atoms = salt(103)
    for first, second in zip(whole(model, atoms), whole(again, atoms), strict=True):
        np.testing.assert_array_equal(first, second)


def test_evaluations_of_whole_and_rest_agree(place: Path, tmp_path: Path) -> None:
    """Errors of the whole on labels of the whole are those of the rest on the rest."""
    errors = []
    for name in ("residual", "plain"):
        out = tmp_path / name
        words = ["evaluate", str(place / "run/model"), str(place / name), str(out)]
        assert CliRunner().invoke(app, words).exit_code == 0
        errors.append(json.loads((out / "evaluation.json").read_text()))
    for name in ("energy_mae_per_atom", "force_mae", "stress_mae"):
        assert errors[0][name] == pytest.approx(errors[1][name], rel=1e-4)
    assert errors[0]["force_mae"] > 0


def test_other_physics_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(place / "run/model"), str(place / "other"), str(tmp_path / "out")]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, PhysicsError)
    said = str(error)
    assert "other: has labels minus fixed charges" in said
    assert "and the model adds fixed charges" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["torch-sim", "metatomic"])
def test_engines_that_would_leave_it_out_refuse(
    engine: str, model: LoadedModel, tmp_path: Path
) -> None:
    run: Callable[[], object]
    if engine == "torch-sim":
        pytest.importorskip("torch_sim")
        from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

        run = lambda: EvenfieldTorchSimModel(model)  # noqa: E731
    else:
        from evenfield.model_zoo.engines.metatomic_export import export_metatomic

        run = lambda: export_metatomic(model, tmp_path / "model.pt")  # noqa: E731
    with pytest.raises(EngineError, match=r"the model adds fixed charges .*: use the calculator"):
        run()


def test_data_of_other_physics_cannot_be_trained_on(place: Path, tmp_path: Path) -> None:
    with pytest.raises(PhysicsError, match="convert both sources with the same settings"):
        pretrain(recipe([place / "residual", place / "other"], tmp_path / "run"), quiet=True)
    started = recipe(place / "plain", tmp_path / "run", start_from=str(place / "run/model"))
    with pytest.raises(PhysicsError, match="has labels minus no physics, and the model adds fixed"):
        pretrain(started, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_go_on_with_other_physics(place: Path) -> None:
    changed = recipe(place / "other", place / "run", max_steps=50)
    with pytest.raises(EvenfieldError, match="minus other physics than the data that the run"):
        pretrain(changed, resume="must", quiet=True, changed_data=True)


def test_fine_tuning_subtracts_by_itself(place: Path, model: LoadedModel, tmp_path: Path) -> None:
    """From a file, from labels of the whole and from those of the rest, it learns the same."""
    raw = write_salts(tmp_path / "raw.extxyz", 6, PHYSICS, first=200)
    settings = FineTuneConfig.model_validate(
        {
            "strategy": "refit",
            "valid_share": 0.0,
            "source": {"level_of_theory": LEVEL, "trust_units": True},
        }
    )
    of_file = finetune(model, raw, settings, work=tmp_path / "work")
    assert of_file.target.physics == PHYSICS
    folder = save_finetuned(of_file, model, tmp_path / "tuned")
    tuned = load(folder)
    assert tuned.potential.config.physics == PHYSICS

    atoms = salt(104)
    truth = label_salt(atoms, PHYSICS).get_forces()
    error = np.abs(whole(tuned, atoms)[1] - truth).mean()
    # if the labels had not been subtracted from, the physics would be counted twice
    assert error < 0.5 * np.abs(physics_of_atoms(PHYSICS, atoms).forces).mean()

    targets = [
        open_target(place / name, valid_share=0.0, physics=PHYSICS)
        for name in ("residual", "plain")
    ]
    for one, other in zip(targets[0].train, targets[1].train, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-4)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-4)
    plain = FineTuneConfig.model_validate({"strategy": "refit", "valid_share": 0.0})
    with pytest.raises(PhysicsError, match="other: has labels minus fixed charges"):
        finetune(model, place / "other", plain)


def test_replayed_structures_have_labels_of_the_rest(place: Path, model: LoadedModel) -> None:
    replayed = []
    for name in ("residual", "plain"):
        config = ReplayConfig(data=str(place / name), own_labels=False)
        replay = replay_structures(model.potential, config, 0)
        assert replay is not None
        replayed.append(replay.structures)
    assert len(replayed[0]) == len(replayed[1]) > 0
    for one, other in zip(*replayed, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-4)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-4)
    with pytest.raises(PhysicsError, match="other: has labels minus fixed charges"):
        replay_structures(model.potential, ReplayConfig(data=str(place / "other")), 0)


def test_a_loop_of_learning_subtracts_by_itself(
    place: Path, model: LoadedModel, tmp_path: Path
) -> None:
    """Oracles label the whole."""
    frames = [label_salt(salt(seed), PHYSICS) for seed in range(300, 306)]
    structures = [
        Structure.from_atoms(
            frame,
            LEVEL,
            str(index),
            energy=frame.get_potential_energy(),
            forces=frame.get_forces(),
        )
        for index, frame in enumerate(frames)
    ]
    config = LearnConfig.model_validate(
        {"oracle": "EMT", "level_of_theory": LEVEL, "strategy": "refit"}
    )
    fit(model, structures, "0" * 64, tmp_path / "model", config, tmp_path / "learned.json")
    atoms = salt(106)
    truth = label_salt(atoms, PHYSICS).get_forces()
    error = np.abs(whole(load(tmp_path / "model"), atoms)[1] - truth).mean()
    assert error < 0.5 * np.abs(physics_of_atoms(PHYSICS, atoms).forces).mean()


def test_a_model_without_physics_refuses_its_data(place: Path, tmp_path: Path) -> None:
    pretrain(recipe(place / "plain", tmp_path / "run", max_steps=2), quiet=True)
    stored = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert "physics" not in stored["architecture"]
    plain = load(tmp_path / "run" / "model")
    settings = FineTuneConfig.model_validate({"strategy": "refit", "valid_share": 0.0})
    with pytest.raises(PhysicsError, match="and the model adds no physics"):
        finetune(plain, place / "residual", settings)


def test_a_frame_of_the_wrong_net_charge_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    """Only charges that equilibrate have a sum that could differ."""
    config = PhysicsConfig.model_validate(
        {
            "coulomb": {
                "electronegativity": {"Na": 2.8, "Cl": 8.3},
                "hardness": {"Na": 4.6, "Cl": 9.8},
            }
        }
    )
    potential = type(model.potential)(model.potential.config.model_copy(update={"physics": config}))
    save_model(tmp_path / "equilibrates", potential, model.record)
    atoms = salt(105)
    atoms.calc = load(tmp_path / "equilibrates").calculator()
    neutral = atoms.get_potential_energy()
    assert np.isfinite(neutral)
    atoms.info["charge"] = 1
    with pytest.raises(PhysicsError, match="has the net charge 1, and the physics has"):
        atoms.get_potential_energy()
