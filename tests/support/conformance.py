"""The suite that every potential must pass, as a mixin: inherit it, give `potential`, and all checks run.

float32 and float64 each; the tolerances are relative to the size of the quantity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from e3nn import o3

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import ModelRecord, Potential, load_model, save_model


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def structure(atoms: Atoms) -> Structure:
    """Unlabelled structure of the first head."""
    return Structure(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, "default", "s", "g"
    )


def batch_of(systems: list[Atoms], cutoff: float, dtype: torch.dtype) -> Batch:
    """Systems as a batch."""
    return Batch.join(
        [Batch.from_structure(structure(atoms), cutoff, dtype=dtype) for atoms in systems]
    )


def crystal() -> Atoms:
    """A rattled, sheared rock-salt cell smaller than the cutoff."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.set_cell(
        atoms.cell.array + np.array([[0, 0.2, 0], [0, 0, -0.1], [0.1, 0, 0]]), scale_atoms=True
    )
    atoms.rattle(0.15, seed=1)
    return atoms


def ethanol() -> Atoms:
    """A rattled molecule."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=2)
    return atoms


def assert_close(
    got: torch.Tensor | np.ndarray, want: torch.Tensor | np.ndarray, tolerance: float
) -> None:
    """Largest difference relative to the largest wanted entry."""
    __tracebackhide__ = True
    got, want = (
        np.asarray(torch.as_tensor(got).detach()),
        np.asarray(torch.as_tensor(want).detach()),
    )
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-12)
    assert error < tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
class PotentialConformance:
    """Physics that any potential has to respect. `cutoff` in A must be that of `potential()`."""

    cutoff: float

    def potential(self) -> Potential:
        """A potential with random weights; the mixin calls `.to(dtype)` and `.eval()`."""
        raise NotImplementedError

    def model(self, dtype: torch.dtype) -> Potential:
        torch.manual_seed(3)
        return self.potential().to(dtype).eval()

    def predict(self, model: Potential, *systems: Atoms) -> dict[str, torch.Tensor]:
        return model(batch_of(list(systems), self.cutoff, next(model.parameters()).dtype))

    @pytest.mark.parametrize("inversion", [False, True], ids=["rotation", "rotoinversion"])
    @pytest.mark.parametrize("make", [crystal, ethanol])
    def test_equivariance(self, dtype: torch.dtype, make, inversion: bool) -> None:
        model, atoms = self.model(dtype), make()
        rotation = o3.rand_matrix(dtype=torch.float64).numpy() * (-1 if inversion else 1)
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T
        before, after = self.predict(model, atoms), self.predict(model, turned)
        tolerance = TOLERANCE[dtype]
        assert_close(after.energy, before.energy, tolerance)
        assert_close(after.forces, before.forces.detach().double().numpy() @ rotation.T, tolerance)
        if atoms.pbc.all():
            stress = rotation @ before.stress[0].detach().double().numpy() @ rotation.T
            assert_close(after.stress[0], stress, tolerance)

    def test_translation_and_lattice_images(self, dtype: torch.dtype) -> None:
        model, atoms = self.model(dtype), crystal()
        moved = atoms.copy()
        moved.positions += [0.3, -1.2, 0.7]
        moved.positions[2] += atoms.cell[0] - atoms.cell[2]
        before, after = self.predict(model, atoms), self.predict(model, moved)
        for name in ("energy", "forces", "stress"):
            assert_close(after.labels[name], before.labels[name], 3 * TOLERANCE[dtype])

    def test_permutation(self, dtype: torch.dtype) -> None:
        model, atoms = self.model(dtype), ethanol()
        order = np.random.default_rng(0).permutation(len(atoms))
        before, after = self.predict(model, atoms), self.predict(model, atoms[order])
        assert_close(after.energy, before.energy, TOLERANCE[dtype])
        assert_close(after.forces, before.forces[order], TOLERANCE[dtype])

    def test_batch_equals_single(self, dtype: torch.dtype) -> None:
        model, systems = (
            self.model(dtype),
            [crystal(), ethanol(), Atoms("He"), crystal() * (2, 1, 1)],
        )
        together = self.predict(model, *systems)
        alone = [self.predict(model, atoms) for atoms in systems]
        assert_close(together.energy, torch.cat([out.energy for out in alone]), TOLERANCE[dtype])
        assert_close(together.forces, torch.cat([out.forces for out in alone]), TOLERANCE[dtype])
        assert torch.isnan(together.stress[1]).all()

    def test_supercell_is_extensive(self, dtype: torch.dtype) -> None:
        model, atoms = self.model(dtype), crystal()
        one, eight = self.predict(model, atoms), self.predict(model, atoms * 2)
        assert_close(eight.energy, 8 * one.energy, TOLERANCE[dtype])
        assert_close(eight.stress, one.stress, 3 * TOLERANCE[dtype])

    def test_net_force_and_torque_vanish(self, dtype: torch.dtype) -> None:
        model, atoms = self.model(dtype), ethanol()
        forces = self.predict(model, atoms).forces.detach().double().numpy()
        assert np.abs(forces.sum(0)).max() < 1e-5
        torque = np.cross(atoms.positions - atoms.positions.mean(0), forces).sum(0)
        assert np.abs(torque).max() < 30 * TOLERANCE[dtype] * np.abs(forces).max()

    def test_save_and_load_are_bit_identical(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model = self.model(dtype)
        elements = {level: ["Na", "Cl"] for level in model.config.levels_of_theory}
        save_model(tmp_path / "model", model, ModelRecord(name="test", elements=elements))
        loaded, _ = load_model(tmp_path / "model")
        before, after = self.predict(model, crystal()), self.predict(loaded, crystal())
        for name in before.labels:
            assert torch.equal(before.labels[name], after.labels[name]), name

    def test_training_mode_predicts_the_same(self, dtype: torch.dtype) -> None:
        model = self.model(dtype)
        before = self.predict(model, crystal()).forces
        assert_close(self.predict(model.train(), crystal()).forces, before, TOLERANCE[dtype])


class PotentialConformance64:
    """Checks that need float64: finite differences and smoothness."""

    cutoff: float

    def potential(self) -> Potential:
        raise NotImplementedError

    def model(self) -> Potential:
        torch.manual_seed(3)
        return self.potential().double().eval()

    def energy(self, model: Potential, atoms: Atoms) -> float:
        return model(batch_of([atoms], self.cutoff, torch.float64)).energy.item()

    @pytest.mark.parametrize("make", [crystal, ethanol])
    def test_forces_are_central_differences(self, make) -> None:
        model, atoms = self.model(), make()
        forces = model(batch_of([atoms], self.cutoff, torch.float64)).forces.detach().numpy()
        scale, step = np.abs(forces).max(), 1e-4
        for atom, axis in [(0, 0), (1, 2), (len(atoms) - 1, 1)]:
            energies = []
            for sign in (2, 1, -1, -2):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                energies.append(self.energy(model, moved))
            slope = (8 * (energies[1] - energies[2]) - (energies[0] - energies[3])) / (12 * step)
            assert abs(-slope - forces[atom, axis]) < 1e-6 * scale

    def test_stress_is_the_strain_derivative(self) -> None:
        model, atoms = self.model(), crystal()
        stress = model(batch_of([atoms], self.cutoff, torch.float64)).stress[0].detach().numpy()
        step = 1e-4
        for a, b in [(0, 0), (1, 2), (2, 0)]:
            energies = []
            for sign in (2, 1, -1, -2):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                energies.append(self.energy(model, strained))
            slope = (8 * (energies[1] - energies[2]) - (energies[0] - energies[3])) / (12 * step)
            assert abs(slope / atoms.get_volume() - stress[a, b]) < 1e-6 * np.abs(stress).max()

    def test_cutoff_is_smooth_to_second_order(self) -> None:
        """E, dE/dr and d2E/dr2 of a third atom that crosses the cutoff of two others have no step."""
        model = self.model()
        gap = 1e-4

        def energies(distance: float) -> np.ndarray:
            grid = distance + gap * np.arange(-2, 3)
            trimers = [Atoms("NaClO", [[0, 0, 0], [0, 2.5, 0], [0, 0, r]]) for r in grid]
            return model(batch_of(trimers, self.cutoff, torch.float64)).energy.detach().numpy()

        inside, outside = energies(self.cutoff - 3 * gap), energies(self.cutoff + 3 * gap)
        size = np.abs(np.diff(energies(0.7 * self.cutoff), 2)).max() / gap**2
        for order in range(3):
            step = (
                np.abs(np.diff(inside, order).mean() - np.diff(outside, order).mean()) / gap**order
            )
            assert step < 2e-3 * size, (
                f"derivative {order} steps by {step:.1e} at the cutoff (curvature {size:.1e})"
            )
