"""A model in the form that metatomic's file holds; `metatomic_export.py` checks and calls this.

The file is TorchScript: the network as a graph of aten operations (compile/tracing.py), and around
it the module below, which turns the program's neighbour lists into tiles. The program takes the
derivative of the energy itself.

Energies, reference energies and core repulsion are those of the calculator. A file has one level of
theory, and metatomic refuses elements that this level never saw in training.

Shapes: N atoms of all systems together. metatomic says "system" for what is a structure elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
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
from .calculator import moved, trained_elements


class MetatomicPotential(nn.Module):
    """metatomic's interface around the energies of the atoms; TorchScript compiles all of it."""

    def __init__(self, potential: Potential, head: int) -> None:
        super().__init__()
        self.cutoff = potential.config.cutoff
        self.head = head
        # one size for all structures, since the graph is traced once: that of a typical atom
        typical_degree = torch.tensor([round(potential.config.num_neighbours)])
        self.tile_size = cheapest_size(typical_degree)
        self.network = scripted(_energy_graph(potential, self.tile_size))
        # strict: pairs beyond the cutoff would only cost time, their envelope is zero
        self.neighbours = NeighborListOptions(cutoff=self.cutoff, full_list=True, strict=True)

    @torch.jit.export
    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        """All pairs within the cutoff, each in both directions."""
        return [self.neighbours]

    def forward(
        self, systems: list[System], outputs: dict[str, ModelOutput], selected_atoms: Labels | None
    ) -> dict[str, TensorMap]:
        """The energy in eV of each system or each atom; of the selected atoms only, if given."""
        results: dict[str, TensorMap] = {}
        if "energy" not in outputs:
            return results

        atoms, energies = self.energies(systems)
        samples = Labels(["system", "atom"], atoms)
        if selected_atoms is not None:
            chosen = samples.select(selected_atoms)
            atoms = atoms[chosen]
            energies = energies[chosen]
            samples = Labels(["system", "atom"], atoms)

        if outputs["energy"].sample_kind != "atom":
            index = torch.arange(len(systems), device=atoms.device)
            energies = energies.new_zeros(len(systems)).index_add(0, atoms[:, 0].long(), energies)
            samples = Labels(["system"], index.unsqueeze(1))

        # the sum is in float64; the program expects the dtype of its systems
        values = energies.to(systems[0].positions.dtype).unsqueeze(1)
        single = torch.zeros((1, 1), dtype=torch.int32, device=atoms.device)
        no_components: list[Labels] = []
        block = TensorBlock(values, samples, no_components, Labels(["energy"], single))
        results["energy"] = TensorMap(Labels(["_"], single), [block])
        return results

    def energies(self, systems: list[System]) -> tuple[Tensor, Tensor]:
        """Indices (system, atom) of all atoms, (N, 2), and their energies in eV, (N,) float64."""
        atoms: list[Tensor] = []
        types: list[Tensor] = []
        senders: list[Tensor] = []
        receivers: list[Tensor] = []
        vectors: list[Tensor] = []
        first = 0
        for index, system in enumerate(systems):
            # metatomic's vectors point from the first atom to the second, ours to the sender
            pairs = system.get_neighbor_list(self.neighbours)
            receivers.append(pairs.samples.column("first_atom").long() + first)
            senders.append(pairs.samples.column("second_atom").long() + first)
            vectors.append(pairs.values.squeeze(2))
            types.append(system.types.long())
            own = torch.arange(len(system), device=system.types.device)
            atoms.append(torch.stack([torch.full_like(own, index), own], 1))
            first += len(system)

        # all systems as one graph, as in a batch
        atomic_numbers = torch.cat(types)
        sender, receiver, tiled_vectors = lay_tiles(
            torch.cat(senders),
            torch.cat(receivers),
            torch.cat(vectors),
            first,
            self.cutoff,
            self.tile_size,
        )
        head = torch.full_like(atomic_numbers, self.head)
        energies = self.network(atomic_numbers, head, tiled_vectors, sender, receiver)
        return torch.cat(atoms), energies


def _energy_graph(potential: Potential, tile_size: int) -> torch.fx.GraphModule:
    """The graph that gives energies of atoms, (N,) float64 in eV, from vectors laid in tiles.

    It includes reference energies and core repulsion.
    """

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> Tensor:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        interaction, _ = potential.interaction(atomic_numbers, head, vectors, tiles)
        energies = potential.e0[head, atomic_numbers] + interaction.double()
        if potential.config.repulsion:
            slot_receiver = tiles.slot_receiver
            core = potential.repulsion.energies(
                vectors,
                atomic_numbers[slot_receiver],
                atomic_numbers[sender],
                head[slot_receiver],
            )
            energies = energies.index_add(0, slot_receiver, core.double())
        return energies

    return trace(function, potential.readout.weight, tile_size)


def write(model: LoadedModel, level_of_theory: str, dtype: str, path: Path) -> None:
    """Compile a model for one level of theory, describe it, and write it to `path`."""
    # traced on the CPU; the program moves the file to its own device
    potential = moved(model.potential, "cpu", dtype)
    config = potential.config
    head = config.levels_of_theory.index(level_of_theory)
    module = torch.jit.script(MetatomicPotential(potential, head).eval())

    energy = ModelOutput(
        unit="eV", sample_kind="atom", description=f"total energy at {level_of_theory}"
    )
    capabilities = ModelCapabilities(
        outputs={"energy": energy},
        atomic_types=sorted(trained_elements(model.record, level_of_theory)),
        interaction_range=potential.backbone.receptive_field,
        length_unit="angstrom",
        supported_devices=["cpu", "cuda"],
        dtype=dtype,
    )
    with _no_extensions():
        AtomisticModel(module, _metadata(model, level_of_theory), capabilities).save(path)


def _metadata(model: LoadedModel, level_of_theory: str) -> ModelMetadata:
    """What the file tells about the model."""
    record = model.record
    description = (
        f"{record.description} Level of theory: {level_of_theory}. "
        f"Licence: {record.licence or 'not stated'}."
    )
    return ModelMetadata(
        name=model.reference,
        description=description.strip(),
        references={"model": [record.citation]} if record.citation else {},
    )


@contextmanager
def _no_extensions() -> Iterator[None]:
    """Hide the libraries that this process has loaded.

    metatomic would store their names and demand them wherever the file is used.
    """
    loaded = torch.ops.loaded_libraries
    torch.ops.loaded_libraries = set()
    try:
        yield
    finally:
        torch.ops.loaded_libraries = loaded
