"""The conformance suite: rules that every potential must obey, whatever its network.

Each check is a function that takes a model. If the model breaks the rule, the check raises
ConformanceError with the size of the error. The checks in CHECKS run in float32 and in float64.
Those in FLOAT64_CHECKS use finite differences and run in float64 only. Tolerances are relative to
the largest entry of the quantity.

`check_model` runs all checks. `PotentialConformance` is a mixin that turns each check into a pytest
test:

    class TestMyModel(PotentialConformance):
        def potential(self):
            return MyModel(...)

A model is any torch module that fits the protocol `Model`: it has a cutoff, and turns a `Batch`
into a `Prediction`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from ..data_pipelines.batch import Batch
from ..model_zoo.package.folder import load_model, save_model
from ..model_zoo.package.record import ModelRecord
from ..model_zoo.potential.potential import Potential
from ..model_zoo.potential.prediction import Prediction
from .structures import batch_of, crystal, ethanol


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}

# The forces cancel in the net force, so there is no natural scale for a relative tolerance.
LARGEST_NET_FORCE = 1e-5  # eV/A

# Step of the finite differences, in A. The error of a five-point stencil is of fourth order in it.
STEP = 1e-4
FIVE_POINTS = (2 * STEP, STEP, -STEP, -2 * STEP)
FINITE_DIFFERENCE_TOLERANCE = 1e-6

# Largest jump at the cutoff, relative to the curvature well inside it.
LARGEST_JUMP = 2e-3


class ConformanceError(AssertionError):
    """A model breaks a rule that every potential must obey."""


class Model(Protocol):
    """What the suite needs from a model: a torch module with these members."""

    @property
    def cutoff(self) -> float:
        """Cutoff radius in A: atoms that are further apart are not neighbours."""
        ...

    def __call__(self, batch: Batch) -> Prediction: ...

    def parameters(self) -> Any: ...

    def to(self, dtype: torch.dtype) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


def check_model(make_model: Callable[[], Model]) -> None:
    """Run the whole suite on the models that `make_model` returns, with random or trained weights.

    `make_model` is called once for each check.

    Raises ConformanceError, which lists all failed checks.
    """
    failures = []
    for check, dtype in all_checks():
        # A new model for each check: some checks switch it to training mode.
        model = prepared(make_model, dtype)
        try:
            check(model)
        except ConformanceError as error:
            failures.append(f"{check.__name__} ({_name(dtype)}): {error}")

    if failures:
        headline = f"{len(failures)} checks failed"
        raise ConformanceError("\n".join([headline, *failures]))


def all_checks() -> list[tuple[Callable[[Model], None], torch.dtype]]:
    """All pairs of a check and a dtype in which it runs."""
    found: list[tuple[Callable[[Model], None], torch.dtype]] = []
    for check in CHECKS:
        for dtype in (torch.float32, torch.float64):
            found.append((check, dtype))
    for check in FLOAT64_CHECKS:
        found.append((check, torch.float64))
    return found


def prepared(make_model: Callable[[], Model], dtype: torch.dtype) -> Model:
    """A new model in evaluation mode, with this dtype and reproducible random weights."""
    torch.manual_seed(3)
    model = make_model()
    return model.to(dtype).eval()


class PotentialConformance:
    """Mixin for pytest: each check becomes one test for each of its dtypes.

    Inherit from it in a class whose name starts with `Test`, and return a model from `potential`.
    This module does not import pytest; pytest finds `pytest_generate_tests` by its name.
    """

    left_out: tuple[Callable[[Model], None], ...] = ()
    """Checks to leave out, because the model has a good reason not to pass them."""

    def potential(self) -> Model:
        """A model with random weights."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrize `test_conformance` with all checks and dtypes."""
        # pytest calls this for every test of the class, and a user's class may have other tests.
        if "check" not in metafunc.fixturenames:
            return

        cases = []
        names = []
        for check, dtype in all_checks():
            if check not in self.left_out:
                cases.append((check, dtype))
                names.append(f"{check.__name__}-{_name(dtype)}")
        metafunc.parametrize(("check", "dtype"), cases, ids=names)

    def test_conformance(self, check: Callable[[Model], None], dtype: torch.dtype) -> None:
        """Run one check in one dtype."""
        model = prepared(self.potential, dtype)
        check(model)


# Symmetries


def check_rotation(model: Model) -> None:
    """The energy is invariant when a structure is rotated; forces and stress rotate with it."""
    rotation = Rotation.random(random_state=0).as_matrix()
    _check_turned(model, rotation)


def check_rotoinversion(model: Model) -> None:
    """The same for a rotation with inversion: the energy has no pseudoscalar part."""
    rotation = Rotation.random(random_state=0).as_matrix()
    _check_turned(model, -rotation)


def _check_turned(model: Model, rotation: np.ndarray) -> None:
    tolerance = _tolerance(model)
    for atoms in (crystal(), ethanol()):
        # Vectors are rows, so the rotation acts from the right.
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T

        before = _predict(model, atoms)
        after = _predict(model, turned)
        _assert_close("energy", after.energy, before.energy, tolerance)

        turned_forces = _array(before.forces) @ rotation.T
        _assert_close("forces", after.forces, turned_forces, tolerance)

        # A molecule has no stress.
        if atoms.pbc.all():
            stress = _array(before.stress[0])
            turned_stress = rotation @ stress @ rotation.T
            _assert_close("stress", after.stress[0], turned_stress, tolerance)


def check_translation_and_lattice_images(model: Model) -> None:
    """Shifting all atoms together, or one atom by a lattice vector, changes nothing."""
    atoms = crystal()
    moved = atoms.copy()
    moved.positions += [0.3, -1.2, 0.7]
    lattice_vector = atoms.cell[0] - atoms.cell[2]
    moved.positions[2] += lattice_vector

    before = _predict(model, atoms)
    after = _predict(model, moved)
    # Differences between larger coordinates lose more digits to rounding.
    tolerance = 3 * _tolerance(model)
    for name, value in before.labels.items():
        _assert_close(name, after.labels[name], value, tolerance)


def check_permutation(model: Model) -> None:
    """The energy does not depend on the order of the atoms; the forces are permuted with them."""
    atoms = ethanol()
    random = np.random.default_rng(0)
    order = random.permutation(len(atoms))

    before = _predict(model, atoms)
    after = _predict(model, atoms[order])
    tolerance = _tolerance(model)
    _assert_close("energy", after.energy, before.energy, tolerance)
    _assert_close("forces", after.forces, before.forces[order], tolerance)


# Batches and sizes


def check_batch_equals_single(model: Model) -> None:
    """Structures in one batch do not affect each other, even if one of them is a single atom."""
    lone_atom = Atoms("He")
    systems = [crystal(), ethanol(), lone_atom, crystal() * (2, 1, 1)]
    together = _predict(model, *systems)

    energies = []
    forces = []
    for atoms in systems:
        alone = _predict(model, atoms)
        energies.append(alone.energy)
        forces.append(alone.forces)

    tolerance = _tolerance(model)
    _assert_close("energy", together.energy, torch.cat(energies), tolerance)
    _assert_close("forces", together.forces, torch.cat(forces), tolerance)


def check_stress_of_a_molecule_is_nan(model: Model) -> None:
    """The stress is NaN if a structure is not periodic in all directions: it has no volume."""
    stress = _predict(model, ethanol()).stress
    if not torch.isnan(stress).all():
        raise ConformanceError("the stress of a molecule is a number, not NaN")


def check_supercell_is_extensive(model: Model) -> None:
    """A 2 x 2 x 2 supercell has eight times the energy of one cell, and the same stress."""
    atoms = crystal()
    one = _predict(model, atoms)
    eight = _predict(model, atoms * 2)
    tolerance = _tolerance(model)
    _assert_close("energy", eight.energy, 8 * one.energy, tolerance)
    _assert_close("stress", eight.stress, one.stress, 3 * tolerance)


# Forces and stress


def check_net_force_and_torque_vanish(model: Model) -> None:
    """A molecule neither accelerates nor starts to spin by itself."""
    atoms = ethanol()
    forces = _array(_predict(model, atoms).forces)
    net_force = np.abs(forces.sum(0)).max()
    if net_force > LARGEST_NET_FORCE:
        raise ConformanceError(f"the net force is {net_force:.1e} eV/A")

    # about the mean position; since the net force vanishes, any other point gives the same torque
    arms = atoms.positions - atoms.positions.mean(0)
    torque = np.cross(arms, forces).sum(0)
    largest_force = np.abs(forces).max()
    relative = np.abs(torque).max() / largest_force
    if relative > 30 * _tolerance(model):
        raise ConformanceError(f"the torque is {relative:.1e} A times the largest force")


def check_forces_are_central_differences(model: Model) -> None:
    """F = -dE/dr, by finite differences of the energy."""
    for atoms in (crystal(), ethanol()):
        forces = _array(_predict(model, atoms).forces)
        largest_force = np.abs(forces).max()

        # Three components are enough: each needs four energies.
        for atom, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
            displaced = []
            for step in FIVE_POINTS:
                moved = atoms.copy()
                moved.positions[atom, axis] += step
                displaced.append(moved)

            slope = _slope(model, displaced)
            error = abs(-slope - forces[atom, axis]) / largest_force
            # `not <` also catches NaN
            if not error < FINITE_DIFFERENCE_TOLERANCE:
                raise ConformanceError(
                    f"the force on atom {atom} of {atoms.symbols} along axis {axis} differs from "
                    f"the slope of the energy by {error:.1e} of the largest force"
                )


def check_stress_is_the_strain_derivative(model: Model) -> None:
    """stress = dE/dstrain / V, by finite differences of the energy."""
    atoms = crystal()
    stress = _array(_predict(model, atoms).stress[0])
    largest_stress = np.abs(stress).max()

    for a, b in ((0, 0), (1, 2), (2, 0)):
        strained = []
        for step in FIVE_POINTS:
            # Symmetrize the strain: otherwise it would contain a rotation.
            strain = np.eye(3)
            strain[a, b] += 0.5 * step
            strain[b, a] += 0.5 * step

            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            strained.append(moved)

        expected = _slope(model, strained) / atoms.get_volume()
        error = abs(expected - stress[a, b]) / largest_stress
        if not error < FINITE_DIFFERENCE_TOLERANCE:
            raise ConformanceError(
                f"stress component {a}{b} differs from the strain derivative of the energy by "
                f"{error:.1e} of the largest component"
            )


def check_cutoff_is_smooth_to_second_order(model: Model) -> None:
    """E, dE/dr and d2E/dr2 are continuous when an atom crosses the cutoff of two others."""
    gap = 1e-4

    def derivatives(distance: float) -> np.ndarray:
        """E, dE/dr and d2E/dr2 (3,) at this distance of the third atom, by finite differences."""
        grid = distance + gap * np.arange(-2, 3)
        trimers = []
        for height in grid:
            positions = [[0, 0, 0], [0, 2.5, 0], [0, 0, height]]
            trimers.append(Atoms("NaClO", positions))
        energies = _array(_predict(model, *trimers).energy)

        means = []
        for order in range(3):
            differences = np.diff(energies, order)
            means.append(float(differences.mean()) / gap**order)
        return np.array(means)

    def difference(offset: float) -> np.ndarray:
        """Derivatives just inside the cutoff minus those just outside it."""
        inside = derivatives(model.cutoff - offset)
        outside = derivatives(model.cutoff + offset)
        return np.asarray(inside - outside)

    # extrapolate to an offset of 0 from two offsets at which no grid point crosses the cutoff
    near = difference(3 * gap)
    far = difference(6 * gap)
    jumps = np.abs(2 * near - far)

    _, _, curvature = np.abs(derivatives(0.7 * model.cutoff))
    for order, jump in enumerate(jumps):
        if not jump < LARGEST_JUMP * curvature:
            raise ConformanceError(
                f"derivative {order} of the energy jumps by {jump:.1e} at the cutoff "
                f"(curvature well inside it: {curvature:.1e})"
            )


# Training, saving and loading


def check_training_mode_predicts_the_same(model: Model) -> None:
    """Training mode gives the same forces as evaluation mode: there is no dropout or the like."""
    before = _predict(model, crystal()).forces
    after = _predict(model.train(), crystal()).forces
    _assert_close("forces in training mode", after, before, _tolerance(model))


def check_forces_can_be_trained(model: Model) -> None:
    """Gradients of the forces with respect to the parameters are finite and not all zero."""
    prediction = _predict(model.train(), crystal())
    loss = prediction.forces.square().sum()

    # Forces do not depend on some parameters, such as reference energies: their gradients are None.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]

    if not any(bool(gradient.any()) for gradient in found):
        raise ConformanceError("the forces do not depend on any parameter")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
        raise ConformanceError("a gradient of the forces by a parameter is not finite")


def check_save_and_load_are_bit_identical(model: Model) -> None:
    """A saved and reloaded model gives identical predictions; skipped if it is not a Potential."""
    if not isinstance(model, Potential):
        return

    # ModelRecord has no default for its elements
    elements = {level: ["Na", "Cl"] for level in model.config.levels_of_theory}
    record = ModelRecord(name="conformance", elements=elements)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_model(path, model, record)
        loaded, _ = load_model(path)

    before = _predict(model, crystal())
    after = _predict(loaded, crystal())
    for name, value in before.labels.items():
        if not torch.equal(after.labels[name], value):
            raise ConformanceError(f"{name} changed when the model was saved and loaded")


CHECKS = (
    check_rotation,
    check_rotoinversion,
    check_translation_and_lattice_images,
    check_permutation,
    check_batch_equals_single,
    check_stress_of_a_molecule_is_nan,
    check_supercell_is_extensive,
    check_net_force_and_torque_vanish,
    check_training_mode_predicts_the_same,
    check_forces_can_be_trained,
    check_save_and_load_are_bit_identical,
)
FLOAT64_CHECKS = (
    check_forces_are_central_differences,
    check_stress_is_the_strain_derivative,
    check_cutoff_is_smooth_to_second_order,
)


def _predict(model: Model, *systems: Atoms) -> Prediction:
    batch = batch_of(list(systems), model.cutoff, _dtype(model))
    return model(batch)


def _slope(model: Model, systems: list[Atoms]) -> float:
    """Derivative of the energy by a five-point stencil, whose middle point has the weight zero.

    `systems` are displaced by +2, +1, -1 and -2 times STEP.
    """
    energies = _predict(model, *systems).energy
    far_up, up, down, far_down = _array(energies)
    near = up - down
    far = far_up - far_down
    return float((8 * near - far) / (12 * STEP))


def _assert_close(
    name: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray, tolerance: float
) -> None:
    """Raise ConformanceError if the largest difference exceeds the tolerance.

    The difference is relative to the largest expected entry.
    """
    expected_values = _array(expected)
    difference = np.abs(_array(found) - expected_values).max()
    # If all expected entries vanish by symmetry, fall back to a tiny absolute scale.
    scale = max(np.abs(expected_values).max(), 1e-12)
    error = difference / scale
    if not error < tolerance:
        raise ConformanceError(f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}")


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    """A NumPy array; tensors are converted to float64."""
    if isinstance(values, Tensor):
        on_cpu = values.detach().cpu()
        return on_cpu.double().numpy()
    return values


def _dtype(model: Model) -> torch.dtype:
    parameter: nn.Parameter = next(iter(model.parameters()))
    return parameter.dtype


def _tolerance(model: Model) -> float:
    return TOLERANCE[_dtype(model)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
