"""A model in the form of metatomic, which LAMMPS, i-PI, torch-sim, ASE and others load; see metatomic_export.py.

The file is TorchScript: the network as a graph of aten operations (traced.py) and, around it, the module below, which
lays the engine's neighbour lists into tiles. The engine differentiates the energy. Energies, E0 and core repulsion are
those of the calculator; what is exported is one level of theory, and metatomic refuses elements that it never saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ase.data import chemical_symbols
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from torch import Tensor, nn

from ..compile.tracing import scripted, trace
from ..hub.load import LoadedModel
from ..network.tiles import Tiles, cheapest_size, lay_tiles
from ..potential.potential import Potential
from .calculator import moved


class MetatomicPotential(nn.Module):
    """metatomic's interface over the energies of the atoms, compiled by TorchScript as a whole."""

    def __init__(self, potential: Potential, head: int) -> None:
        super().__init__()
        self.cutoff = potential.config.cutoff
        self.head = head
        self.tile_size = cheapest_size(torch.tensor([round(potential.config.num_neighbours)]))
        self.network = scripted(_energy_graph(potential, self.tile_size))
        # pairs beyond the cutoff would only cost time: their envelope is zero
        self.neighbours = NeighborListOptions(cutoff=self.cutoff, full_list=True, strict=True)

    @torch.jit.export
    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        """All pairs, each in both directions."""
        return [self.neighbours]

    def forward(
        self, systems: list[System], outputs: dict[str, ModelOutput], selected_atoms: Labels | None
    ) -> dict[str, TensorMap]:
        """The energy in eV of each system or of each atom; of the selected atoms alone where some are named."""
        results: dict[str, TensorMap] = {}
        if "energy" not in outputs:
            return results
        atoms, energies = self.energies(systems)
        samples = Labels(["system", "atom"], atoms)
        if selected_atoms is not None:
            chosen = samples.select(selected_atoms)
            atoms, energies = atoms[chosen], energies[chosen]
            samples = Labels(["system", "atom"], atoms)
        if outputs["energy"].sample_kind != "atom":
            index = torch.arange(len(systems), device=atoms.device)
            energies = energies.new_zeros(len(systems)).index_add(0, atoms[:, 0].long(), energies)
            samples = Labels(["system"], index.unsqueeze(1))
        one = torch.zeros((1, 1), dtype=torch.int32, device=atoms.device)
        no_components: list[Labels] = []
        # summed in float64; the dtype of the systems is what the engine takes
        values = energies.to(systems[0].positions.dtype).unsqueeze(1)
        block = TensorBlock(values, samples, no_components, Labels(["energy"], one))
        results["energy"] = TensorMap(Labels(["_"], one), [block])
        return results

    def energies(self, systems: list[System]) -> tuple[Tensor, Tensor]:
        """(system, atom) of all atoms (N, 2) and their energies (N,) in eV, float64."""
        atoms: list[Tensor] = []
        types: list[Tensor] = []
        senders: list[Tensor] = []
        receivers: list[Tensor] = []
        vectors: list[Tensor] = []
        first = 0
        for index, system in enumerate(systems):
            pairs = system.get_neighbor_list(
                self.neighbours
            )  # vectors from the first atom to the second
            receivers.append(pairs.samples.column("first_atom").long() + first)
            senders.append(pairs.samples.column("second_atom").long() + first)
            vectors.append(pairs.values.squeeze(2))
            types.append(system.types.long())
            own = torch.arange(len(system), device=system.types.device)
            atoms.append(torch.stack([torch.full_like(own, index), own], 1))
            first += len(system)
        z = torch.cat(types)
        sender, receiver, padded = lay_tiles(
            torch.cat(senders),
            torch.cat(receivers),
            torch.cat(vectors),
            first,
            self.cutoff,
            self.tile_size,
        )
        return torch.cat(atoms), self.network(
            z, torch.full_like(z, self.head), padded, sender, receiver
        )


def _energy_graph(potential: Potential, tile_size: int) -> torch.fx.GraphModule:
    """Energies (N,) of the atoms in eV, float64, with E0 and core repulsion, from vectors laid in tiles."""

    def function(
        z: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> Tensor:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        energies = potential.e0[head, z] + potential.interaction(z, head, vectors, tiles).double()
        if potential.config.repulsion:
            at = tiles.slot_receiver
            core = potential.repulsion.energies(vectors, z[at], z[sender], head[at])
            energies = energies.index_add(0, at, core.double())
        return energies

    return trace(function, potential.readout.weight, tile_size)


def write(model: LoadedModel, level_of_theory: str, dtype: str, path: Path) -> None:
    """Compile the model, describe it and write it."""
    potential = moved(model.potential, "cpu", dtype)
    config = potential.config
    module = torch.jit.script(
        MetatomicPotential(potential, config.levels_of_theory.index(level_of_theory)).eval()
    )
    what = f"total energy at {level_of_theory}"
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="atom", description=what)},
        atomic_types=sorted(
            chemical_symbols.index(s) for s in model.record.elements.get(level_of_theory, [])
        ),
        interaction_range=config.cutoff * config.num_layers,
        length_unit="angstrom",
        supported_devices=["cpu", "cuda"],
        dtype=dtype,
    )
    about = f"{model.record.description} Level of theory: {level_of_theory}."
    metadata = ModelMetadata(
        name=model.reference,
        description=f"{about} Licence: {model.record.licence or 'not stated'}.".strip(),
        references={"model": [model.record.citation]} if model.record.citation else {},
    )
    with _no_extensions():
        AtomisticModel(module, metadata, capabilities).save(path)


@contextmanager
def _no_extensions() -> Iterator[None]:
    """metatomic writes down what libraries this process has loaded and asks for them wherever the file is used."""
    loaded = torch.ops.loaded_libraries
    torch.ops.loaded_libraries = set()
    try:
        yield
    finally:
        torch.ops.loaded_libraries = loaded
