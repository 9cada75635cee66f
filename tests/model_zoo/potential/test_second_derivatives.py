"""Second derivatives by strain are what strained and relaxed crystals show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from evenfield import model_zoo
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.engines.calculator import moved
from evenfield.model_zoo.potential.second_derivatives import elastic_tensor


STEP = 1e-3


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy


def curvature(calculator: Calculator, atoms: Atoms, strain: np.ndarray) -> float:
    """d2E/de2 / V with the atoms at rest, by differences."""
    energies = []
    for sign in (-1, 0, 1):
        copy = strained(atoms, sign * STEP * strain)
        copy.calc = calculator
        BFGS(copy, logfile=None).run(fmax=1e-6, steps=100)
        energies.append(copy.get_potential_energy())
    return (energies[0] - 2 * energies[1] + energies[2]) / STEP**2 / atoms.get_volume()


# the atoms of silicon move against each other when it is sheared; neighbours in NaCl repel
@pytest.mark.parametrize(
    ("name", "structure", "edge"), [("Si", "diamond", 5.45), ("NaCl", "rocksalt", 5.69)]
)
def test_elastic_constants_are_those_of_strained_crystals(
    name: str, structure: str, edge: float
) -> None:
    model = model_zoo.load("evenfield-1")
    atoms = bulk(name, structure, a=edge)
    calculator = model.calculator(level_of_theory="mp_pbe", dtype="float64")

    potential = moved(model.potential, "cpu", "float64")
    config = potential.config
    batch = Batch.from_structure(
        Structure.from_atoms(atoms, "mp_pbe", "crystal"),
        config.cutoff,
        config.levels_of_theory,
        torch.float64,
    )
    tensor = elastic_tensor(potential, batch)
    assert tensor.shape == (6, 6)
    assert torch.allclose(tensor, tensor.T)

    along = np.diag([1.0, 0.0, 0.0])
    shear = np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])
    assert curvature(calculator, atoms, along) == pytest.approx(float(tensor[0, 0]), rel=1e-3)
    assert curvature(calculator, atoms, shear) == pytest.approx(float(tensor[3, 3]), rel=1e-3)


@pytest.mark.parametrize("architecture", ["gaunt", "schnet"])
def test_third_derivatives_exist_and_do_not_depend_on_their_order(architecture) -> None:
    torch.manual_seed(0)
    config = PotentialConfig(levels_of_theory=["PBE"], architecture=architecture, cutoff=4.0)
    potential = Potential(config).double()
    atoms = bulk("Si", "diamond", a=5.3, cubic=True)
    atoms.rattle(0.1, seed=0)
    structure = Structure.from_atoms(atoms, "PBE", "crystal")
    batch = Batch.from_structure(structure, config.cutoff, ["PBE"], torch.float64)
    vectors, tiles = potential.edge_vectors(batch)
    straight = vectors.detach()
    head = batch.head[batch.structure_index]

    def gradient(shifts: torch.Tensor) -> torch.Tensor:
        between = straight + shifts[tiles.sender] - shifts[tiles.slot_receiver]
        energies, _ = potential.interaction(batch.atomic_numbers, head, between, tiles)
        (found,) = torch.autograd.grad(energies.sum(), shifts, create_graph=True)
        return found

    def second(shifts: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        slope = (gradient(shifts) * along).sum()
        (found,) = torch.autograd.grad(slope, shifts, create_graph=True)
        return found

    def third(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        shifts = torch.zeros(len(atoms), 3, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad((second(shifts, first) * other).sum(), shifts)
        return found

    u, v, w = torch.randn(3, len(atoms), 3, dtype=torch.float64)
    value = float((third(u, v) * w).sum())
    assert abs(value) > 1e-3
    assert value == pytest.approx(float((third(w, u) * v).sum()), rel=1e-8)

    ends = []
    for sign in (1, -1):
        shifts = (sign * STEP * w).requires_grad_()
        ends.append(float((second(shifts, u).detach() * v).sum()))
    assert value == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-3)
