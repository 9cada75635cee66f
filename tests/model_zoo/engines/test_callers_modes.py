"""Results do not depend on what the caller has set in torch, and the caller's settings stay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from evenfield import model_zoo
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.evaluation.evaluation import predict


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As MACE's calculators leave it behind."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    # as torch.set_default_device("cuda"), on any machine
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def answers(folder: Path) -> list[np.ndarray]:
    """Everything that a calculator of each dtype gives, from loading on."""
    model = model_zoo.load(folder)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    found = []
    for dtype in ("float32", "float64"):
        calculator = model.calculator(level_of_theory="EMT", dtype=dtype)
        atoms.calc = calculator
        found.append(atoms.get_potential_energies())
        found.append(atoms.get_forces())
        found.append(atoms.get_stress())
        found.append(calculator.get_features(atoms))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_results_are_the_same_in_every_mode(folder: Path, mode: str) -> None:
    expected = answers(folder)
    context: AbstractContextManager[object] = MODES[mode]()
    with context:
        dtype = torch.get_default_dtype()
        found = answers(folder)
        # what the caller has set stays as it was
        assert torch.get_default_dtype() == dtype
    for own, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(own, other)


def test_results_after_a_mode_are_the_same(folder: Path) -> None:
    """A calculator that was first used in inference mode keeps no tensor of it."""
    calculator = model_zoo.load(folder).calculator(level_of_theory="EMT")
    atoms = bulk("Cu", cubic=True)
    atoms.calc = calculator
    with torch.inference_mode():
        inside = atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.1
    assert atoms.get_potential_energy() != inside


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", ["gaunt", "schnet"])
def test_a_new_model_is_the_same_in_every_mode(network: str, mode: str) -> None:
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = PotentialConfig.model_validate({"architecture": network, "channels": 8})
        potential = Potential(config)
        # also buffers that no file holds, because they follow from the settings
        return dict(potential.named_parameters()) | dict(potential.named_buffers())

    expected = weights()
    context: AbstractContextManager[object] = MODES[mode]()
    with context:
        found = weights()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].device) == (value.dtype, value.device), name
        assert not found[name].is_inference(), name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("mode", MODES)
def test_a_stored_model_is_the_same_in_every_mode(folder: Path, mode: str) -> None:
    expected = model_zoo.load(folder).potential
    with MODES[mode]():
        found = model_zoo.load(folder).potential
    tensors = dict(found.named_parameters()) | dict(found.named_buffers())
    for name, value in (*expected.named_parameters(), *expected.named_buffers()):
        assert tensors[name].dtype == value.dtype, name
        assert not tensors[name].is_inference() and torch.equal(tensors[name], value), name


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_the_same_in_every_mode(folder: Path, mode: str) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    structure = Structure.from_atoms(atoms, "EMT", "a", "a", split="test", energy=-3.0)
    expected = predict(model_zoo.load(folder).potential, [structure]).pairs
    with MODES[mode]():
        found = predict(model_zoo.load(folder).potential, [structure]).pairs
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_batch_made_in_inference_mode(folder: Path) -> None:
    """The potential itself, without a calculator."""
    from evenfield.testing.structures import batch_of

    potential = model_zoo.load(folder).potential.eval()
    atoms = bulk("Cu", cubic=True)
    expected = potential(batch_of([atoms], potential.cutoff, torch.float32)).forces
    with torch.inference_mode():
        batch = batch_of([atoms], potential.cutoff, torch.float32)
        found = potential(batch).forces
    assert torch.equal(found, expected)


FORKED = """
import multiprocessing
import sys

import torch
from ase.build import bulk

from evenfield import model_zoo

torch.set_num_threads(2)
CALCULATOR = model_zoo.load("evenfield-s").calculator(level_of_theory="EMT")


def energy(seed):
    atoms = bulk("Cu", cubic=True) * 2
    atoms.rattle(0.05, seed=seed)
    atoms.calc = CALCULATOR
    return atoms.get_potential_energy()


expected = [energy(seed) for seed in range(2)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(energy, range(2)).get(timeout=60)
difference = max(abs(a - b) for a, b in zip(expected, found))
assert difference < 1e-4, (expected, found)
# the parent keeps its threads
assert torch.get_num_threads() == 2
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the default on Linux only")
def test_a_forked_pool_computes_after_its_parent_has() -> None:
    """It waited forever for threads that a fork does not copy."""
    command = [sys.executable, "-c", FORKED]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.stdout == "done\n", finished.stderr
