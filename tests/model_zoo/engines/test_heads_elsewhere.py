"""Heads of other properties in other programs say what ASE's calculator says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from evenfield import model_zoo
from evenfield.model_zoo.engines.errors import EngineError
from evenfield.model_zoo.heads.description import HeadError
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.folder import attach

from labelled_molecules import (
    ROTATING,
    heads_of_all_kinds,
    molecular_model,
    molecules,
    planted_head,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = molecular_model(tmp_path_factory.mktemp("elsewhere") / "model", **ROTATING)
    potential = model_zoo.load(path).potential
    attach(path, {HEADS: heads_file(potential, heads_of_all_kinds(potential))})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


def unlike(*, periodic: bool = False) -> list[Atoms]:
    """Structures of different sizes and elements."""
    if not periodic:
        return molecules(copies=1)[:6]
    crystals = [bulk("CO", "rocksalt", a=3.6), bulk("C", cubic=True) * (2, 1, 1)]
    for seed, crystal in enumerate(crystals):
        crystal.rattle(0.1, seed=seed)
    crystals[1].symbols[3] = "N"
    return crystals


def calculated(model: LoadedModel, frames: list[Atoms], **settings: Any) -> list[dict[str, Any]]:
    """The results of ASE's calculator, structure by structure."""
    calculator = model.calculator(**({"heads": True, "dtype": "float64"} | settings))
    found = []
    for atoms in frames:
        calculator.calculate(atoms)
        found.append(dict(calculator.results))
    return found


# --- torch-sim


def torch_sim_state(ts: Any, frames: list[Atoms], dtype: torch.dtype = torch.float64) -> Any:
    return ts.io.atoms_to_state(frames, torch.device("cpu"), dtype)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
def test_torch_sim_says_what_the_calculator_says(
    model: LoadedModel, periodic: bool, dtype: str, tolerance: float
) -> None:
    """All heads, in a batch of unlike structures; there is no dipole of a crystal."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype=dtype, heads=True)
    frames = unlike(periodic=periodic)
    state = torch_sim_state(ts, frames, getattr(torch, dtype))
    found = wrapped(state)
    assert list(found) == wrapped.implemented_properties
    expected = calculated(model, frames, dtype=dtype)
    names = {*model.heads, "gap_std", "volume_std", "moment_std"}
    assert names <= set(found)
    for system, own in enumerate(expected):
        rows = state.system_idx == system
        assert ("dipole" in own) != periodic
        for name in names:
            per_atom = found[name].shape[0] == len(rows)
            value = found[name][rows] if per_atom else found[name][system]
            if name == "dipole" and periodic:
                assert value.isnan().all()
                continue
            reference = own[name]
            scale = max(1.0, np.nanmax(np.abs(reference), initial=0.0))
            np.testing.assert_allclose(value, reference, atol=tolerance * scale, err_msg=name)
    assert found["moment"].isnan().any() and not found["moment"].isnan().all()
    assert found["phase"].sum(1).numpy() == pytest.approx(1.0)
    assert found["charges"].dtype == getattr(torch, dtype)


def test_torch_sim_writes_heads_into_trajectories(model: LoadedModel, tmp_path: Path) -> None:
    """Dynamics of unlike molecules, and what the reporter kept of each of them."""
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype="float64", heads=True)
    frames = unlike()[:3]
    files = [str(tmp_path / f"{system}.h5") for system in range(len(frames))]
    reporter = ts.TrajectoryReporter(
        files, state_frequency=2, prop_calculators={2: wrapped.property_calculators()}
    )
    ts.integrate(
        torch_sim_state(ts, frames),
        wrapped,
        integrator=ts.nve,
        n_steps=4,
        temperature=300.0,
        timestep=0.0005,
        trajectory_reporter=reporter,
    )
    reporter.close()
    for file in files:
        with ts.TorchSimTrajectory(file, mode="r") as trajectory:
            kept = {name: trajectory.get_array(name) for name in wrapped.heads.names}
            assert len(kept["dipole"]) == 2
            for place in range(2):
                (expected,) = calculated(model, [trajectory.get_atoms(place)])
                for name, values in kept.items():
                    value = values[place]
                    np.testing.assert_allclose(
                        value.squeeze(), expected[name], atol=1e-6, err_msg=name
                    )
        # the second look was at other positions
        assert np.abs(kept["dipole"][0] - kept["dipole"][1]).max() > 1e-6


def test_torch_sim_computes_properties_of_one_look_once(model: LoadedModel) -> None:
    ts = pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    wrapped = EvenfieldTorchSimModel(model, dtype="float64", heads=["dipole", "gap"])
    passes = []
    wrapped.potential.backbone.register_forward_hook(lambda *_: passes.append(1))
    state = torch_sim_state(ts, unlike()[:1])
    calculators = wrapped.property_calculators()
    first = {name: calculate(state) for name, calculate in calculators.items()}
    # the invariants of one head; vectors of the other take another way
    assert len(passes) == 1
    # a state that a program has moved in place is another one
    state.positions[0] += 0.1
    assert not torch.equal(calculators["dipole"](state), first["dipole"])
    state.positions[0] -= 0.1
    np.testing.assert_allclose(calculators["dipole"](state), first["dipole"], atol=1e-12)

    with pytest.raises(EngineError, match=r"phase: no head .* choose from dipole, gap"):
        wrapped.property_calculators(["phase"])
    without = EvenfieldTorchSimModel(model, dtype="float64")
    with pytest.raises(EngineError, match="make it with heads=True"):
        without.properties_of(state)
    with pytest.raises(HeadError, match="mass: the model has no such head"):
        EvenfieldTorchSimModel(model, heads=["mass"])


def test_torch_sims_own_check_with_heads(tmp_path: Path) -> None:
    """Heads of a level whose elements are those of torch-sim's check."""
    pytest.importorskip("torch_sim", reason="comes with the extra `engines`")
    from torch_sim.models.interface import validate_model_outputs

    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    path = molecular_model(tmp_path / "model")
    loaded = model_zoo.load(path)
    loaded.record.elements["PBE"] = ["Si", "Fe"]
    head = planted_head("scalar", loaded.potential.backbone.num_features, name="gap", unit="eV")
    silicon = head.description.model_copy(update={"elements": ["Si", "Fe", "H", "O"]})
    head = type(head)(silicon, head.weight, head.bias)
    file = {HEADS: heads_file(loaded.potential, {"gap": head})}
    saved = model_zoo.save_model(
        tmp_path / "other", loaded.potential, loaded.record, attachments=file
    )
    wrapped = EvenfieldTorchSimModel(model_zoo.load(saved), dtype="float64", heads=True)
    validate_model_outputs(wrapped, torch.device("cpu"), torch.float64)
