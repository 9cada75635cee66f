"""The compiled network beside the plain one: same numbers for structures of any size, and a fallback."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from ase.build import bulk, molecule

from evenfield.data_pipelines.graphs import collate, structure_graph
from evenfield.data_pipelines.sources import SourceConfig, structure_from_atoms
from evenfield.model_zoo import Potential, PotentialConfig, load


SMALL = PotentialConfig(channels=4, l_max=1, num_layers=2, cutoff=4.0, readout_size=8, radial_hidden=8)


def batch_of(*atoms):
    source = SourceConfig(level_of_theory="default")
    structures = [structure_from_atoms(a, source, str(k)) for k, a in enumerate(atoms)]
    return collate([structure_graph(structure, SMALL.cutoff) for structure in structures])


def both(batches, plain, compiled):
    with torch.no_grad():
        return [(plain(batch), compiled(batch)) for batch in batches]


@pytest.fixture(scope="module")
def batches():
    rattled = bulk("Cu", cubic=True) * (2, 2, 1)
    rattled.rattle(0.1, seed=0)
    ethanol = molecule("CH3CH2OH")
    # the lone atom has no edge: it goes the plain way; the others are of sizes that the tracing did not see
    return [batch_of(rattled, ethanol), batch_of(ethanol), batch_of(rattled), batch_of(molecule("H"))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("error:torch.compile failed")
def test_compiled_network_gives_the_same_numbers(batches):
    torch.manual_seed(0)
    plain = Potential(SMALL).eval()
    compiled = copy.deepcopy(plain)
    compiled.use_compiler()
    for expected, found in both(batches, plain, compiled):
        for name in ("energy", "energies", "forces", "stress"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not compiled.compiled.failed

    with torch.no_grad():  # a weight that changes is seen: fine-tuning and averaging write in place
        plain.readout.weight.mul_(2.0)
        compiled.readout.weight.mul_(2.0)
    ((expected, found),) = both(batches[:1], plain, compiled)
    torch.testing.assert_close(found["forces"], expected["forces"], rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_warns_once_and_goes_on(batches, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    plain = Potential(SMALL).eval()
    compiled = copy.deepcopy(plain)
    compiled.use_compiler()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found") as warned:
        pairs = both(batches, plain, compiled)
    assert len([w for w in warned if "torch.compile failed" in str(w.message)]) == 1
    for expected, found in pairs:
        torch.testing.assert_close(found["forces"], expected["forces"])


def test_training_is_left_alone(batches):
    potential = Potential(SMALL)
    potential.use_compiler()
    potential(batches[0])["forces"].square().sum().backward()
    assert potential.compiled.tile_size is None  # nothing was compiled
    assert potential.readout.weight.grad is not None


def test_calculator_compiles_a_copy_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)  # the traced graph itself, without a C++ compiler
    model = load("evenfield-s")
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    forces = []
    for compiled in (False, True):
        atoms.calc = model.calculator(level_of_theory="EMT", compiled=compiled)
        forces.append(atoms.get_forces())
    assert atoms.calc.potential.compiled.tile_size is not None
    assert model.potential.compiled is None
    torch.testing.assert_close(*map(torch.from_numpy, forces), rtol=1e-5, atol=1e-5)
