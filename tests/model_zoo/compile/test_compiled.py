"""The compiled potential gives the same numbers for structures of any size, and has a fallback."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from ase.build import bulk, molecule

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.read import structure_from_atoms
from evenfield.model_zoo import Potential, PotentialConfig, load
from evenfield.model_zoo.compile.compiled import compile_for_inference, compile_for_training
from evenfield.model_zoo.compile.padded_shape import PaddedShape, choose_padded_shape
from evenfield.model_zoo.network.tiles import Tiles
from evenfield.model_zoo.potential.derivatives import energies_and_slopes


SMALL = PotentialConfig(
    channels=4,
    l_max=1,
    num_layers=1,
    correlation=2,
    cutoff=4.0,
    readout_size=8,
    radial_hidden=8,
)


def compiles(test):
    """Marks a test that compiles: slow, and a fallback to the plain function is an error."""
    test = pytest.mark.skipif(
        shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU"
    )(test)
    return pytest.mark.slow(pytest.mark.filterwarnings("error:torch.compile failed")(test))


def batch_of(*atoms):
    source = SourceConfig(level_of_theory="default")
    structures = [structure_from_atoms(a, source, str(k)) for k, a in enumerate(atoms)]
    return Batch.join([Batch.from_structure(structure, SMALL.cutoff) for structure in structures])


def both(batches, plain, compiled):
    with torch.no_grad():
        return [(plain(batch), compiled(batch)) for batch in batches]


@pytest.fixture(scope="module")
def batches():
    rattled = bulk("Cu", cubic=True) * (2, 2, 1)
    rattled.rattle(0.1, seed=0)
    ethanol = molecule("CH3CH2OH")
    # the lone atom has no edge and runs eagerly; the others have sizes that tracing did not see
    return [
        batch_of(rattled, ethanol),
        batch_of(ethanol),
        batch_of(rattled),
        batch_of(molecule("H")),
    ]


@compiles
def test_compiled_network_gives_the_same_numbers(batches):
    torch.manual_seed(0)
    plain = Potential(SMALL).eval()
    compiled = copy.deepcopy(plain)
    function = compile_for_inference(compiled)
    for expected, found in both(batches, plain, compiled):
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(
                found.labels[name], expected.labels[name], rtol=1e-5, atol=1e-6, equal_nan=True
            )
    assert not function.failed

    with torch.no_grad():  # a weight that changes is seen: fine-tuning and averaging write in place
        plain.readout.weight.mul_(2.0)
        compiled.readout.weight.mul_(2.0)
    ((expected, found),) = both(batches[:1], plain, compiled)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_warns_once_and_goes_on(batches, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    plain = Potential(SMALL).eval()
    compiled = copy.deepcopy(plain)
    compile_for_inference(compiled)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found") as warned:
        pairs = both(batches, plain, compiled)
    assert len([w for w in warned if "torch.compile failed" in str(w.message)]) == 1
    for expected, found in pairs:
        torch.testing.assert_close(found.forces, expected.forces)


def gradients(potential, batch):
    """Energies, forces and the gradients of a loss of both by all weights."""
    potential.zero_grad()
    out = potential(batch)
    (out.energy.sum() + out.forces.square().sum()).backward()
    return [
        out.energy,
        out.forces,
        *(p.grad for p in potential.parameters() if p.grad is not None),
    ]


def shape_of(batch, **more):
    degree = torch.bincount(batch.edge_index[1], minlength=batch.num_atoms)
    tiles = int(((degree + 7) // 8).sum())
    return PaddedShape(batch.num_atoms + more.get("atoms", 0), tiles + more.get("tiles", 0), 8)


@compiles
def test_compiled_training_gives_the_same_gradients(batches):
    torch.manual_seed(0)
    plain = Potential(SMALL).train()
    compiled = copy.deepcopy(plain)
    function = compile_for_training(compiled, shape_of(batches[2], atoms=3, tiles=5))
    # the first and largest is too large for the shape, the second and third are padded to it
    for batch in batches[:3]:
        for found, expected in zip(
            gradients(compiled, batch), gradients(plain, batch), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not function.failed


@pytest.mark.filterwarnings("error:torch.compile failed")
def test_padding_to_a_shape_changes_nothing(batches):
    torch.manual_seed(0)
    potential, batch = Potential(SMALL).double().train(), batches[2]
    shape = shape_of(batch, atoms=2, tiles=3)
    expected = gradients(potential, batch)
    function = compile_for_training(potential, shape)

    def plain(z, head, vectors, sender, receiver):
        assert (len(z), len(receiver)) == (shape.num_atoms, shape.num_tiles)
        tiles = Tiles(sender, receiver, vectors, shape.tile_size)
        return energies_and_slopes(potential, z, head, vectors, tiles, keep_graph=True)

    function._call = plain
    for found, known in zip(gradients(potential, batch), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


def test_compiling_that_fails_leaves_training_as_it_was(batches, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    potential = Potential(SMALL).train()
    expected = gradients(potential, batches[0])
    compile_for_training(potential, shape_of(batches[0]))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found"):
        found = gradients(potential, batches[0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_shape_fits_most_batches_where_they_are_alike():
    alike = [torch.full((100 + k % 5,), 40) for k in range(40)]
    shape = choose_padded_shape(alike)
    assert 100 <= shape.num_atoms <= 104
    assert shape.num_tiles == shape.num_atoms * -(-40 // shape.tile_size)


def test_no_shape_where_batches_differ_too_much():
    assert choose_padded_shape([torch.full((2**k,), 8) for k in range(2, 10)]) is None


def test_calculator_compiles_a_copy_of_its_own(monkeypatch):
    monkeypatch.setattr(
        torch, "compile", lambda graph, **_: graph
    )  # the traced graph itself, without a C++ compiler
    model = load("evenfield-s")
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    forces = []
    for compiled in (False, True):
        atoms.calc = model.calculator(level_of_theory="EMT", compiled=compiled)
        forces.append(atoms.get_forces())
    assert atoms.calc.potential.slope_functions["inference"].tile_size is not None
    assert not model.potential.slope_functions
    torch.testing.assert_close(*map(torch.from_numpy, forces), rtol=1e-5, atol=1e-5)
