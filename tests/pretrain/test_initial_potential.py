"""What a fresh potential takes from its data: radii, E0, energy scale, neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii

from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.evaluation.evaluation import evaluate
from evenfield.model_zoo.potential.repulsion import REACH, Repulsion
from evenfield.pretrain.initial_potential import Sample, build_potential, fit_radii


def labelled(atoms: Atoms, forces: np.ndarray | None, energy: float | None = 0.0) -> Structure:
    return Structure.from_atoms(atoms, "a", "s", "g", energy=energy, forces=forces)


def squeezed(rng: np.random.Generator, symbols: str) -> Atoms:
    """A rattled crystal, a fifth shorter than at rest."""
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[:] = rng.choice([symbols[:2], symbols[2:]], len(atoms))
    atoms.set_cell(atoms.cell * rng.uniform(0.75, 0.9), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    return atoms


def test_radii_that_made_the_forces_are_found_again_and_others_stay():
    rng = np.random.default_rng(0)
    crystals = [squeezed(rng, "CuAu") for _ in range(30)]
    truth = Repulsion(5.0)
    with torch.no_grad():
        truth.log_factor[0, 29], truth.log_factor[0, 79] = 0.15, -0.1
        forces = truth_forces(truth, crystals)
    sample = Sample.of(
        [labelled(atoms, own) for atoms, own in zip(crystals, forces, strict=True)], 5.0
    )
    fitted = Repulsion(5.0)
    fit_radii(fitted, sample)
    assert fitted.log_factor[0, 29].item() == pytest.approx(0.15, abs=0.02)
    assert fitted.log_factor[0, 79].item() == pytest.approx(-0.1, abs=0.02)
    others = np.delete(fitted.radii()[0].detach().numpy(), [29, 79])
    assert others == pytest.approx(REACH * np.delete(covalent_radii[:119], [29, 79]), rel=1e-6)


def truth_forces(repulsion: Repulsion, crystals: list[Atoms]) -> list[np.ndarray]:
    """Forces by central differences of the summed pair energies, over ASE's own neighbour list."""
    from ase.neighborlist import neighbor_list

    def energy(atoms: Atoms) -> float:
        i, j, vectors = neighbor_list("ijD", atoms, 5.0)
        ends = (atoms.numbers[i], atoms.numbers[j], np.zeros_like(i))
        return repulsion(*map(torch.from_numpy, (vectors, *ends)))[0].sum().item()

    forces = []
    for atoms in crystals:
        own = np.zeros((len(atoms), 3))
        for k, axis in np.ndindex(own.shape):
            moved = [atoms.copy(), atoms.copy()]
            for sign, copy in zip((1, -1), moved, strict=True):
                copy.positions[k, axis] += sign * 1e-4
            own[k, axis] = (energy(moved[1]) - energy(moved[0])) / 2e-4
        forces.append(own)
    return forces


@pytest.mark.parametrize("forces", [None, np.full((4, 3), np.nan)], ids=["none", "nan"])
def test_without_forces_the_radii_stay(forces):
    atoms = squeezed(np.random.default_rng(0), "CuAu")
    repulsion = Repulsion(5.0)
    fit_radii(repulsion, Sample.of([labelled(atoms, forces)], 5.0))
    assert (repulsion.log_factor == 0).all()


def test_structures_without_near_pairs():
    atoms = Atoms("He2", [[0, 0, 0], [0, 0, 4.0]])
    sample = Sample.of(
        [labelled(atoms, np.zeros((2, 3))), labelled(Atoms("He"), np.zeros((1, 3)))], 5.0
    )
    repulsion = Repulsion(5.0)
    fit_radii(repulsion, sample)
    assert (repulsion.log_factor == 0).all() and sample.num_edges == 2


def test_before_the_first_step_repulsion_explains_more_than_nothing(run_config):
    force_mae = {}
    for repulsion in (False, True):
        config = run_config(model=run_config().model.model_dump() | {"repulsion": repulsion})
        potential = build_potential(config, config.open_data())
        torch.nn.init.zeros_(potential.readout.weight)
        errors = evaluate(potential, iter_structures(config.data, "test"), "test")
        force_mae[repulsion] = errors.force_mae
    assert force_mae[True] < 0.3 * force_mae[False]
