"""Charges that are learned through their Coulomb energy: closed forms, slopes, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.special import erf

from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError
from evenfield.finetune.closed_form.widen import narrowed, widened
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig, load_model, save_model
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.potential.charges import UNIT
from evenfield.model_zoo.potential.derivatives import energies_and_slopes
from evenfield.model_zoo.potential.potential import TENSORS_OF_HEADS
from evenfield.testing import PotentialConformance
from evenfield.testing.structures import batch_of, crystal, ethanol

from physics_beside import physics_of_atoms


pytest.importorskip("torchpme")

CHARGE = 0.8
COULOMB = 14.399645  # eV A
MADELUNG = 1.7475645946


def with_charges(**settings: object) -> Potential:
    """A small potential whose charges follow the surroundings, as after training."""
    config = {"channels": 8, "cutoff": 4.5, "readout_size": 16, "radial_hidden": 16}
    torch.manual_seed(3)
    potential = Potential(PotentialConfig(**(config | {"charges": True} | settings)))
    potential.e0[:] = -3.0
    potential.readout.element_weight.data.normal_(std=0.1)
    potential.charges.weight.data.normal_(std=0.3)
    return potential


def fixed_charges(**settings: object) -> Potential:
    """Charges of sodium and chlorine that depend on nothing, and no other energy."""
    potential = with_charges(repulsion=False, **settings).double().eval()
    with torch.no_grad():
        potential.e0.zero_()
        potential.readout.weight.zero_()
        potential.readout.element_weight.zero_()
        potential.charges.weight.zero_()
        potential.charges.element_charge.zero_()
        potential.charges.element_charge[11] = CHARGE / UNIT
        potential.charges.element_charge[17] = -CHARGE / UNIT
    return potential


def predicted(potential: Potential, atoms: Atoms, dtype: torch.dtype = torch.float64):
    return potential(batch_of([atoms], potential.config.cutoff, dtype))


class TestConformance(PotentialConformance):
    def potential(self) -> Potential:
        return with_charges()


class TestConformanceWithoutVectors(PotentialConformance):
    def potential(self) -> Potential:
        settings = {"architecture": "schnet", "channels": 8, "cutoff": 4.0, "readout_size": 16}
        torch.manual_seed(3)
        potential = Potential(PotentialConfig(charges=True, **settings))
        potential.charges.weight.data.normal_(std=0.3)
        return potential


def test_charges_that_do_not_change_are_those_of_the_physics_block() -> None:
    """Its real-space sum and another division of the Ewald sum, of the same Gaussians."""
    stated = {"charges": {"Na": CHARGE, "Cl": -CHARGE}, "width": 1.0, "cutoff": 12.0}
    physics = PhysicsConfig.model_validate({"coulomb": stated})
    potential = fixed_charges()
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.2, seed=1)
    pair = Atoms("NaCl", [[0, 0, 0], [0, 0.4, 1.2]])
    for atoms in (salt, pair):
        known = physics_of_atoms(physics, atoms)
        found = predicted(potential, atoms)
        assert float(found.energy.detach()) == pytest.approx(known.energy, rel=1e-9)
        np.testing.assert_allclose(found.forces.detach(), known.forces, atol=1e-8)
        if known.stress is not None:
            np.testing.assert_allclose(found.stress[0].detach(), known.stress, atol=1e-9)
        np.testing.assert_allclose(found.charges, known.charges, atol=1e-12)


def test_narrow_charges_have_the_madelung_constant_of_rock_salt() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    energy = float(predicted(fixed_charges(charge_width=0.3), atoms).energy.detach())
    assert energy == pytest.approx(-MADELUNG * COULOMB * CHARGE**2 / 2.82, rel=1e-6)


def test_charges_add_up_to_zero_and_follow_the_surroundings() -> None:
    potential = with_charges().eval()
    batch = batch_of([crystal(), ethanol()], potential.config.cutoff, torch.float32)
    charges = potential(batch).charges
    assert batch.sum_over_atoms(charges).abs().max() < 1e-12
    hydrogens = charges[batch.atomic_numbers == 1]
    assert hydrogens.max() - hydrogens.min() > 1e-3
    # oxygen attracts more than hydrogen, where training starts too
    fresh = Potential(PotentialConfig(channels=4, charges=True)).eval()
    water = fresh(batch_of([molecule("H2O")], fresh.config.cutoff, torch.float32)).charges
    assert water[0] < -0.1 < 0.05 < water[1]


def test_two_molecules_beyond_the_receptive_field_feel_each_other() -> None:
    """At a large distance the force is that of two dipoles: it falls with the fourth power."""
    forces = {}
    for distance in (40.0, 80.0):
        pair = molecule("H2O") + molecule("H2O")
        pair.positions[3:, 0] += distance
        for potential in (with_charges().double().eval(), fixed_charges().double().eval()):
            own = predicted(potential, pair).forces[3:].sum(0).detach().norm()
            forces.setdefault(distance, []).append(float(own))
    # charges of water are zero in the second: it has no energy at all
    assert forces[40.0][1] == forces[80.0][1] == 0.0
    assert forces[40.0][0] / forces[80.0][0] == pytest.approx(16, rel=0.1)


def test_training_differentiates_through_the_charges() -> None:
    """The slope of a loss on energy, forces and stress by weights, against differences."""
    potential = with_charges().double().train()
    batch = batch_of([crystal(), ethanol()], potential.config.cutoff, torch.float64)

    def loss() -> torch.Tensor:
        found = potential(batch)
        stress = found.stress[0].square().sum()
        return found.energy.square().sum() + found.forces.square().sum() + 100 * stress

    loss().backward()
    charges = potential.charges
    parameters = [charges.weight, charges.element_charge, charges.hidden.weight]
    parameters.append(potential.backbone.element_vectors)
    places = [(3,), (8,), (2, 5), (8, 1)]
    for parameter, place in zip(parameters, places, strict=True):
        step = 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
            ends.append(float(loss().detach()))
            with torch.no_grad():
                parameter[place] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-5)


def test_replaced_slopes_give_the_same() -> None:
    """Compiled networks and uncertainties replace the slopes of the learned energies."""
    potential = with_charges().double().eval()
    batch = batch_of([crystal(), ethanol()], potential.config.cutoff, torch.float64)

    class Replacement:
        tile_size = None

        def __call__(self, *words):
            return energies_and_slopes(potential, *words, keep_graph=False)

    with torch.no_grad():
        whole = potential(batch)
        potential.slope_functions["inference"] = Replacement()
        replaced = potential(batch)
    for name, value in whole.labels.items():
        torch.testing.assert_close(
            replaced.labels[name], value, rtol=1e-12, atol=1e-12, equal_nan=True
        )


def test_energies_without_forces_contain_the_coulomb_energy() -> None:
    potential = with_charges().double().eval()
    batch = batch_of([crystal(), ethanol()], potential.config.cutoff, torch.float64)
    with torch.no_grad():
        vectors, tiles = potential.edge_vectors(batch)
        features = potential.backbone(batch.atomic_numbers, vectors, tiles)
        energies = potential.energies_without_forces(batch, features, vectors, tiles)
        torch.testing.assert_close(batch.sum_over_atoms(energies), potential(batch).energy)


def test_a_wider_readout_leaves_the_charges_alone() -> None:
    potential = with_charges().eval()
    batch = batch_of([crystal()], potential.config.cutoff, torch.float32)
    wide = widened(potential, 8, seed=0)
    for changed in (wide, narrowed(wide, 16)):
        torch.testing.assert_close(changed(batch).charges, potential(batch).charges)
        torch.testing.assert_close(changed(batch).energy, potential(batch).energy)


def test_no_weight_of_charges_belongs_to_a_head() -> None:
    """A new level of theory has the charges of the others from the first step."""
    names = [name for name, _ in with_charges().named_parameters() if name.startswith("charges.")]
    assert len(names) == 4
    assert not set(names) & set(TENSORS_OF_HEADS)
    assert with_charges().parameter_roles()["charges.element_charge"] == "vector"


def test_the_count_of_weights_is_that_of_the_network() -> None:
    potential = with_charges()
    assert potential.config.num_weights == sum(
        tensor.numel() for tensor in potential.state_dict().values()
    )


def test_without_charges_nothing_new_is_stored() -> None:
    stored = PotentialConfig(channels=4).model_dump()
    assert "charges" not in stored
    assert "charge_width" not in stored
    again = PotentialConfig.from_stored(with_charges(charge_width=1.5).config.model_dump())
    assert again.charges
    assert again.charge_width == 1.5


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="charge_width belongs to charges: set charges=true too"):
        PotentialConfig(charge_width=2.0)
    physics = {"coulomb": {"charges": {"Na": 1, "Cl": -1}}}
    with pytest.raises(ValueError, match="minus the energy of charges already; leave charges out"):
        PotentialConfig(charges=True, physics=physics)


def test_a_wire_is_refused_by_its_name() -> None:
    wire = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    wire.pbc = (True, False, False)
    with pytest.raises(PhysicsError, match="is periodic in one direction only"):
        predicted(with_charges().double().eval(), wire)


def polar_sheet() -> Atoms:
    """A plane of sodium over one of chlorine, in a cell that is not rectangular."""
    atoms = Atoms("NaCl", [[0, 0, 0.3], [1.1, 0.4, 2.4]], pbc=(True, True, False))
    atoms.cell = [[3.9, 0, 0], [0.7, 3.5, 0], [0, 0, 0]]
    return atoms


def test_a_slab_is_the_sum_over_its_images_in_two_directions() -> None:
    """Pair by pair over neutral cells up to a radius R, and dipoles (p, q, r) beyond it.

    On cells of the area A these have pi (r^2 - (p^2 + q^2) / 2) / (A R), in the mean over a circle.
    """
    sheet = polar_sheet()
    radius = 300.0
    reach = int(radius / 3.2) + 1
    first, second = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    shifts = np.stack([first.ravel(), second.ravel()], 1) @ sheet.cell.array[:2]
    shifts = shifts[np.linalg.norm(shifts, axis=1) < radius]
    charges = np.array([CHARGE, -CHARGE])
    energy = 0.0
    for i in range(2):
        for j in range(2):
            vectors = sheet.positions[j] + shifts - sheet.positions[i]
            lengths = np.linalg.norm(vectors, axis=1)
            lengths = lengths[lengths > 0]
            energy += 0.5 * charges[i] * charges[j] * (erf(lengths / 2) / lengths).sum()
    dipole = CHARGE * (sheet.positions[0] - sheet.positions[1])
    area = 3.9 * 3.5
    energy += np.pi * dipole**2 @ [-0.5, -0.5, 1.0] / (area * radius)
    found = float(predicted(fixed_charges(), sheet).energy.detach())
    assert found == pytest.approx(COULOMB * energy, rel=2e-5)


def test_forces_on_a_slab_are_the_slopes_of_its_energy() -> None:
    potential = with_charges().double().eval()
    sheet = polar_sheet().repeat((2, 2, 1))
    sheet.rattle(0.1, seed=4)
    forces = predicted(potential, sheet).forces.detach().numpy()
    assert np.abs(forces.sum(0)).max() < 1e-10
    for atom, axis in ((0, 2), (3, 0), (5, 2)):
        ends = []
        for sign in (1, -1):
            moved = sheet.copy()
            moved.positions[atom, axis] += sign * 1e-4
            ends.append(float(predicted(potential, moved).energy.detach()))
        assert forces[atom, axis] == pytest.approx(-(ends[0] - ends[1]) / 2e-4, abs=1e-6)


@pytest.fixture
def model(tmp_path) -> LoadedModel:
    potential = with_charges(levels_of_theory=["PBE"])
    record = ModelRecord(name="salts", elements={"PBE": ["H", "O", "Na", "Cl"]})
    save_model(tmp_path / "model", potential, record)
    return load(tmp_path / "model")


def test_a_stored_model_has_its_charges(model: LoadedModel, tmp_path) -> None:
    potential, _ = load_model(tmp_path / "model")
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=2)
    salt.calc = model.calculator()
    charges = salt.get_charges()
    assert math.isclose(charges.sum(), 0.0, abs_tol=1e-9)
    known = predicted(potential, salt, torch.float32).charges
    np.testing.assert_allclose(charges, known, atol=1e-5)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| charges | learned through their Coulomb energy, without a cutoff" in card


def test_a_net_charge_is_refused_also_when_it_comes_later(model: LoadedModel) -> None:
    water = molecule("H2O")
    water.calc = model.calculator()
    assert np.isfinite(water.get_potential_energy())
    water.info["charge"] = 1
    with pytest.raises(PhysicsError, match="has the net charge 1, and the charges of the model"):
        water.get_potential_energy()


def test_torch_sim_has_the_whole_energy_and_metatomic_refuses(model, tmp_path) -> None:
    from evenfield.model_zoo.engines.errors import EngineError
    from evenfield.model_zoo.engines.metatomic_export import export_metatomic

    with pytest.raises(EngineError, match="the model has charges whose interaction has no cutoff"):
        export_metatomic(model, tmp_path / "model.pt")

    torch_sim = pytest.importorskip("torch_sim")
    from evenfield.model_zoo.engines.torch_sim_model import EvenfieldTorchSimModel

    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=3)
    engine = EvenfieldTorchSimModel(model, dtype="float64")
    state = torch_sim.io.atoms_to_state([salt], torch.device("cpu"), torch.float64)
    found = engine(state)
    salt.calc = model.calculator(dtype="float64")
    assert float(found["energy"][0]) == pytest.approx(salt.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(found["forces"].numpy(), salt.get_forces(), atol=1e-9)
    np.testing.assert_allclose(found["charges"].numpy(), salt.get_charges(), atol=1e-9)
    assert list(found) == engine.implemented_properties
