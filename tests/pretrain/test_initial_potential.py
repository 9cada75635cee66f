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
from evenfield.pretrain.initial_potential import SAMPLE, Sample, build_potential, fit_radii


def labelled(atoms: Atoms, forces: np.ndarray | None, energy: float | None = 0.0) -> Structure:
    return Structure.from_atoms(atoms, "a", "s", "g", energy=energy, forces=forces)


def squeezed(rng: np.random.Generator, symbols: str) -> Atoms:
    """A rattled crystal, a fifth shorter than at rest."""
    atoms = bulk("Cu", cubic=True)
    kinds = [symbols[:2], symbols[2:]]
    atoms.symbols[:] = rng.choice(kinds, len(atoms))
    shorter = rng.uniform(0.75, 0.9)
    atoms.set_cell(atoms.cell * shorter, scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    return atoms


def test_radii_that_made_the_forces_are_found_again_and_others_stay():
    rng = np.random.default_rng(0)
    crystals = [squeezed(rng, "CuAu") for _ in range(30)]
    truth = Repulsion(5.0)
    with torch.no_grad():
        truth.log_factor[0, 29] = 0.15
        truth.log_factor[0, 79] = -0.1
        forces = truth_forces(truth, crystals)

    structures = [labelled(atoms, own) for atoms, own in zip(crystals, forces, strict=True)]
    fitted = Repulsion(5.0)
    fit_radii(fitted, Sample.of(structures, 5.0))

    assert fitted.log_factor[0, 29].item() == pytest.approx(0.15, abs=0.02)
    assert fitted.log_factor[0, 79].item() == pytest.approx(-0.1, abs=0.02)
    radii = fitted.radii()[0].detach().numpy()
    others = np.delete(radii, [29, 79])
    expected = REACH * np.delete(covalent_radii[:119], [29, 79])
    assert others == pytest.approx(expected, rel=1e-6)


def truth_forces(repulsion: Repulsion, crystals: list[Atoms]) -> list[np.ndarray]:
    """Forces by central differences of the summed pair energies, over ASE's own neighbour list."""
    from ase.neighborlist import neighbor_list

    def energy_when_moved(atoms: Atoms, index: int, axis: int, distance: float) -> float:
        moved = atoms.copy()
        moved.positions[index, axis] += distance
        i, j, vectors = neighbor_list("ijD", moved, 5.0)
        heads = np.zeros_like(i)
        arrays = (vectors, moved.numbers[i], moved.numbers[j], heads)
        energies, _ = repulsion(*map(torch.from_numpy, arrays))
        return energies.sum().item()

    forces = []
    for atoms in crystals:
        own = np.zeros((len(atoms), 3))
        for index, axis in np.ndindex(own.shape):
            forward = energy_when_moved(atoms, index, axis, 1e-4)
            backward = energy_when_moved(atoms, index, axis, -1e-4)
            own[index, axis] = (backward - forward) / 2e-4
        forces.append(own)
    return forces


@pytest.mark.parametrize("forces", [None, np.full((4, 3), np.nan)], ids=["none", "nan"])
def test_without_forces_the_radii_stay(forces):
    atoms = squeezed(np.random.default_rng(0), "CuAu")
    repulsion = Repulsion(5.0)
    fit_radii(repulsion, Sample.of([labelled(atoms, forces)], 5.0))
    assert (repulsion.log_factor == 0).all()


def test_structures_without_near_pairs():
    pair = Atoms("He2", [[0, 0, 0], [0, 0, 4.0]])
    structures = [labelled(pair, np.zeros((2, 3))), labelled(Atoms("He"), np.zeros((1, 3)))]
    sample = Sample.of(structures, 5.0)
    repulsion = Repulsion(5.0)
    fit_radii(repulsion, sample)
    assert (repulsion.log_factor == 0).all() and sample.num_edges == 2


def test_before_the_first_step_repulsion_explains_more_than_nothing(run_config):
    force_mae = {}
    for repulsion in (False, True):
        model = run_config().model.model_dump()
        config = run_config(model=model | {"repulsion": repulsion})
        potential = build_potential(config, config.open_data())
        # without the network: only E0 and the repulsion speak
        torch.nn.init.zeros_(potential.readout.weight)
        errors = evaluate(potential, iter_structures(config.data, "test"), "test")
        force_mae[repulsion] = errors.force_mae
    assert force_mae[True] < 0.3 * force_mae[False]


def test_a_level_that_the_sample_misses_has_a_scale_and_references(run_config, monkeypatch):
    """Its scale was 1 eV/A, whatever its forces."""
    config = run_config()
    data = config.open_data()
    complete = data.sample("train", SAMPLE)
    only = [one for one in complete if one.level_of_theory == complete[0].level_of_theory]
    assert len(only) < len(complete)
    monkeypatch.setattr(type(data), "sample", lambda *arguments: only)
    partly = build_potential(config, data)
    monkeypatch.undo()
    whole = build_potential(config, data)
    for head in range(len(whole.config.levels_of_theory)):
        assert partly.scale[head].item() == pytest.approx(whole.scale[head].item(), rel=0.5)
        assert partly.scale[head].item() != 1.0
