"""The conformance suite: what any potential must respect, whatever its network.

Every check is a function of a model, and raises ConformanceError with the size of the error. The
checks of CHECKS run in float32 and float64, those of FLOAT64_CHECKS, which take finite differences,
in float64 alone. Tolerances are relative to the largest entry of the quantity.

`check_model` runs all of them. `PotentialConformance` is a mixin for pytest that makes a test of
each:

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

# A step of finite differences, A. With five points the error is of the order of its fourth power.
STEP = 1e-4
FINITE_DIFFERENCE_TOLERANCE = 1e-6


class ConformanceError(AssertionError):
    """A model breaks a rule that potentials must respect."""


class Model(Protocol):
    """What the suite needs from a model: a torch module with these members."""

    @property
    def cutoff(self) -> float:
        """A; atoms further apart are not neighbours."""
        ...

    def __call__(self, batch: Batch) -> Prediction: ...

    def parameters(self) -> Any: ...

    def to(self, dtype: torch.dtype) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


def check_model(make_model: Callable[[], Model]) -> None:
    """Run the whole suite on models that `make_model` returns, with random or trained weights.

    Raises ConformanceError with all checks that failed.
    """
    failures = []
    for check, dtype in all_checks():
        model = prepared(make_model, dtype)
        try:
            check(model)
        except ConformanceError as error:
            failures.append(f"{check.__name__} ({_name(dtype)}): {error}")
    if failures:
        raise ConformanceError("\n".join([f"{len(failures)} checks failed", *failures]))


def all_checks() -> list[tuple[Callable[[Model], None], torch.dtype]]:
    """Every check with every dtype that it runs in."""
    found: list[tuple[Callable[[Model], None], torch.dtype]] = []
    for check in CHECKS:
        for dtype in (torch.float32, torch.float64):
            found.append((check, dtype))
    for check in FLOAT64_CHECKS:
        found.append((check, torch.float64))
    return found


def prepared(make_model: Callable[[], Model], dtype: torch.dtype) -> Model:
    """A model with reproducible random weights, ready to be checked."""
    torch.manual_seed(3)
    return make_model().to(dtype).eval()


class PotentialConformance:
    """Mixin for pytest: every check in every dtype becomes a test.

    Inherit it in a class whose name starts with `Test`, and return a model from `potential`. This
    module does not import pytest; pytest calls `pytest_generate_tests` by its name.
    """

    left_out: tuple[Callable[[Model], None], ...] = ()
    """Checks that the model cannot pass for a good reason."""

    def potential(self) -> Model:
        """A model with random weights."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give pytest the list of checks."""
        if "check" in metafunc.fixturenames:
            checks = [pair for pair in all_checks() if pair[0] not in self.left_out]
            names = [f"{check.__name__}-{_name(dtype)}" for check, dtype in checks]
            metafunc.parametrize(("check", "dtype"), checks, ids=names)

    def test_conformance(self, check: Callable[[Model], None], dtype: torch.dtype) -> None:
        """One check."""
        check(prepared(self.potential, dtype))


# Symmetries


def check_rotation(model: Model) -> None:
    """The energy does not change when a structure is rotated; forces and stress turn with it."""
    rotation = Rotation.random(random_state=0).as_matrix()
    _check_turned(model, rotation)


def check_rotoinversion(model: Model) -> None:
    """The same with an inversion: there are no pseudoscalar energies."""
    rotation = Rotation.random(random_state=0).as_matrix()
    _check_turned(model, -rotation)


def _check_turned(model: Model, rotation: np.ndarray) -> None:
    tolerance = _tolerance(model)
    for atoms in (crystal(), ethanol()):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T
        before = _predict(model, atoms)
        after = _predict(model, turned)
        _assert_close("energy", after.energy, before.energy, tolerance)
        _assert_close("forces", after.forces, _array(before.forces) @ rotation.T, tolerance)
        if atoms.pbc.all():
            stress = rotation @ _array(before.stress[0]) @ rotation.T
            _assert_close("stress", after.stress[0], stress, tolerance)


def check_translation_and_lattice_images(model: Model) -> None:
    """Moving all atoms, and moving one by a lattice vector, changes nothing."""
    atoms = crystal()
    moved = atoms.copy()
    moved.positions += [0.3, -1.2, 0.7]
    moved.positions[2] += atoms.cell[0] - atoms.cell[2]
    before = _predict(model, atoms)
    after = _predict(model, moved)
    for name, value in before.labels.items():
        _assert_close(name, after.labels[name], value, 3 * _tolerance(model))


def check_permutation(model: Model) -> None:
    """The energy does not depend on the order of the atoms; forces follow it."""
    atoms = ethanol()
    order = np.random.default_rng(0).permutation(len(atoms))
    before = _predict(model, atoms)
    after = _predict(model, atoms[order])
    _assert_close("energy", after.energy, before.energy, _tolerance(model))
    _assert_close("forces", after.forces, before.forces[order], _tolerance(model))


# Batches and sizes


def check_batch_equals_single(model: Model) -> None:
    """Structures of one batch do not see each other; one of them is a lone atom."""
    systems = [crystal(), ethanol(), Atoms("He"), crystal() * (2, 1, 1)]
    together = _predict(model, *systems)
    alone = [_predict(model, atoms) for atoms in systems]
    energies = torch.cat([one.energy for one in alone])
    forces = torch.cat([one.forces for one in alone])
    _assert_close("energy", together.energy, energies, _tolerance(model))
    _assert_close("forces", together.forces, forces, _tolerance(model))


def check_stress_of_a_molecule_is_nan(model: Model) -> None:
    """A structure that is not periodic in all directions has no volume, and so no stress."""
    stress = _predict(model, ethanol()).stress
    if not torch.isnan(stress).all():
        raise ConformanceError("the stress of a molecule is a number, not NaN")


def check_supercell_is_extensive(model: Model) -> None:
    """Eight cells have eight times the energy of one, and the same stress."""
    atoms = crystal()
    one = _predict(model, atoms)
    eight = _predict(model, atoms * 2)
    _assert_close("energy", eight.energy, 8 * one.energy, _tolerance(model))
    _assert_close("stress", eight.stress, one.stress, 3 * _tolerance(model))


# Forces and stress


def check_net_force_and_torque_vanish(model: Model) -> None:
    """A molecule neither accelerates nor starts to spin by itself."""
    atoms = ethanol()
    forces = _array(_predict(model, atoms).forces)
    net_force = np.abs(forces.sum(0)).max()
    if net_force > 1e-5:
        raise ConformanceError(f"the net force is {net_force:.1e} eV/A")

    # about the centre of the atoms; where forces cancel, any other point gives the same torque
    torque = np.cross(atoms.positions - atoms.positions.mean(0), forces).sum(0)
    relative = np.abs(torque).max() / np.abs(forces).max()
    if relative > 30 * _tolerance(model):
        raise ConformanceError(f"the torque is {relative:.1e} A times the largest force")


def check_forces_are_central_differences(model: Model) -> None:
    """F = -dE/dr, by finite differences of the energy."""
    for atoms in (crystal(), ethanol()):
        forces = _array(_predict(model, atoms).forces)
        for atom, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
            displaced = []
            for step in (2 * STEP, STEP, -STEP, -2 * STEP):
                moved = atoms.copy()
                moved.positions[atom, axis] += step
                displaced.append(moved)
            error = abs(-_slope(model, displaced) - forces[atom, axis]) / np.abs(forces).max()
            if not error < FINITE_DIFFERENCE_TOLERANCE:
                raise ConformanceError(
                    f"the force on atom {atom} of {atoms.symbols} along axis {axis} differs from "
                    f"the slope of the energy by {error:.1e} of the largest force"
                )


def check_stress_is_the_strain_derivative(model: Model) -> None:
    """stress = dE/dstrain / V, by finite differences of the energy."""
    atoms = crystal()
    stress = _array(_predict(model, atoms).stress[0])
    for a, b in ((0, 0), (1, 2), (2, 0)):
        strained = []
        for step in (2 * STEP, STEP, -STEP, -2 * STEP):
            strain = np.eye(3)
            strain[a, b] += 0.5 * step
            strain[b, a] += 0.5 * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            strained.append(moved)
        expected = _slope(model, strained) / atoms.get_volume()
        error = abs(expected - stress[a, b]) / np.abs(stress).max()
        if not error < FINITE_DIFFERENCE_TOLERANCE:
            raise ConformanceError(
                f"stress component {a}{b} differs from the strain derivative of the energy by "
                f"{error:.1e} of the largest component"
            )


def check_cutoff_is_smooth_to_second_order(model: Model) -> None:
    """E, dE/dr and d2E/dr2 are continuous where an atom crosses the cutoff of two others."""
    gap = 1e-4

    def derivatives(distance: float) -> np.ndarray:
        """E, dE/dr and d2E/dr2 for the third atom at this distance, by finite differences."""
        grid = distance + gap * np.arange(-2, 3)
        trimers = []
        for height in grid:
            trimers.append(Atoms("NaClO", [[0, 0, 0], [0, 2.5, 0], [0, 0, height]]))
        energies = _array(_predict(model, *trimers).energy)
        means = [float(np.diff(energies, order).mean()) / gap**order for order in range(3)]
        return np.array(means)

    def difference(offset: float) -> np.ndarray:
        """Derivatives just inside the cutoff less those just outside it."""
        inside = derivatives(model.cutoff - offset)
        outside = derivatives(model.cutoff + offset)
        return np.asarray(inside - outside)

    # the limit for an offset of 0, from two offsets at which no grid point crosses the cutoff
    jumps = np.abs(2 * difference(3 * gap) - difference(6 * gap))
    _, _, curvature = np.abs(derivatives(0.7 * model.cutoff))
    for order, jump in enumerate(jumps):
        if not jump < 2e-3 * curvature:
            raise ConformanceError(
                f"derivative {order} of the energy jumps by {jump:.1e} at the cutoff "
                f"(curvature well inside it: {curvature:.1e})"
            )


# Life of a model


def check_training_mode_predicts_the_same(model: Model) -> None:
    """Forces of a training step are those of a prediction: there is no dropout and the like."""
    before = _predict(model, crystal()).forces
    after = _predict(model.train(), crystal()).forces
    _assert_close("forces in training mode", after, before, _tolerance(model))


def check_forces_can_be_trained(model: Model) -> None:
    """The forces have finite gradients by the parameters, as training on them needs."""
    prediction = _predict(model.train(), crystal())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = prediction.forces.square().sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    if not any(bool(gradient.any()) for gradient in found):
        raise ConformanceError("the forces do not depend on any parameter")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
        raise ConformanceError("a gradient of the forces by a parameter is not finite")


def check_save_and_load_are_bit_identical(model: Model) -> None:
    """A model folder gives back the same predictions. Only for models that evenfield can save."""
    if not isinstance(model, Potential):
        return
    elements = {level: ["Na", "Cl"] for level in model.config.levels_of_theory}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        # a record has no default for its elements
        save_model(path, model, ModelRecord(name="conformance", elements=elements))
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
    return model(batch_of(list(systems), model.cutoff, _dtype(model)))


def _slope(model: Model, systems: list[Atoms]) -> float:
    """Derivative of the energy, from structures displaced by +2, +1, -1 and -2 steps."""
    far_up, up, down, far_down = _array(_predict(model, *systems).energy)
    return float((8 * (up - down) - (far_up - far_down)) / (12 * STEP))


def _assert_close(
    name: str, found: Tensor | np.ndarray, expected: Tensor | np.ndarray, tolerance: float
) -> None:
    """The largest difference, relative to the largest expected entry, is within the tolerance."""
    difference = np.abs(_array(found) - _array(expected)).max()
    error = difference / max(np.abs(_array(expected)).max(), 1e-12)
    if not error < tolerance:
        raise ConformanceError(f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}")


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return values


def _dtype(model: Model) -> torch.dtype:
    parameter: nn.Parameter = next(iter(model.parameters()))
    return parameter.dtype


def _tolerance(model: Model) -> float:
    return TOLERANCE[_dtype(model)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
