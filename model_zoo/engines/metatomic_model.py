"""The content of a metatomic file. `metatomic_export.py` makes the checks and calls `write`.

The file is TorchScript. It holds the network as a graph of aten operations (compile/tracing.py),
wrapped by the module below, which packs the program's neighbour lists into tiles. The program
itself differentiates the energy.

Energies agree with those of the calculator, including reference energies and core repulsion. A file
holds one level of theory, and metatomic refuses elements that this level was not trained on.

Heads for other properties are additional outputs. They have a separate graph that runs only if one
of these outputs is requested. Charges and direct forces have metatomic's standard names, `charge`
and `non_conservative_force`. All others are named `evenfield::NAME`.

Shapes: N atoms of all systems together. metatomic calls a structure a "system".
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
    unit_conversion_factor,
)
from torch import Tensor, nn

from ..compile.tracing import scripted, trace
from ..heads.combined import combined, combined_spread
from ..heads.description import KINDS, HeadDescription
from ..heads.features import in_place_of
from ..heads.head import LARGEST_ATOMIC_NUMBER, Head
from ..heads.results import ResultHeads, has_spread
from ..hub.load import LoadedModel
from ..network.interface import CarriedFeatures, Network
from ..network.tiles import Tiles, cheapest_size, lay_tiles
from ..potential.potential import Potential
from .calculator import moved, trained_elements


# columns of `results` that have a standard name in metatomic
STANDARD_NAMES = {"charges": "charge", "direct_forces": "non_conservative_force"}

# kinds of outputs that depend on all atoms of a structure, and not only through a sum over atoms
OF_THE_WHOLE = ("charges", "dipole", "class", "states", "forces")

# replacements for units that metatomic cannot read; one volt is one eV per e
UNITS = {"e*A^2/V": "e^2*A^2/eV", "probability": ""}


def map_of(values: Tensor, samples: Labels, rank: int, property_name: str) -> TensorMap:
    """Wrap values (samples, ...) of a tensor rank in the labels that metatomic requires."""
    xyz = torch.arange(3, device=values.device).unsqueeze(1)
    components: list[Labels] = []
    if rank == 1:
        components = [Labels(["xyz"], xyz)]
    if rank == 2:
        components = [Labels(["xyz_1"], xyz), Labels(["xyz_2"], xyz)]
    if values.dim() == rank + 1:
        values = values.unsqueeze(-1)
    entries = torch.arange(values.shape[-1], device=values.device).unsqueeze(1)
    block = TensorBlock(values, samples, components, Labels([property_name], entries))
    single = torch.zeros((1, 1), dtype=torch.int32, device=values.device)
    return TensorMap(Labels(["_"], single), [block])


class HeadOutput(nn.Module):
    """One output of a head; TorchScript compiles it."""

    def __init__(self, head: Head, column: str, index: int, *, is_spread: bool = False) -> None:
        """Describe one output.

        `column` is the name in the calculator's `results`; `index` is the position of the head's
        first term in the list of terms.
        """
        super().__init__()
        about = head.description
        self.column = column
        self.name = STANDARD_NAMES.get(column, f"evenfield::{column}")
        self.is_spread = is_spread
        self.kind = "charges" if column == "charges" else str(about.kind)
        self.is_sum = head.is_sum
        self.is_of_atoms = column == "charges" or about.per == "atom"
        is_mean = about.per == "structure" and not self.is_sum
        self.needs_whole = is_mean or self.kind in OF_THE_WHOLE
        self.needs_whole = self.needs_whole or (self.is_spread and not self.is_of_atoms)
        self.index = index
        self.rank = 0 if is_spread or self.kind == "charges" else about.rank
        self.property_name = {"class": "class", "states": "state"}.get(
            self.kind, self.name.removeprefix("evenfield::")
        )
        self.known = ", ".join(about.elements)
        known, silent = _element_tables(head)
        self.register_buffer("is_known", known)
        self.register_buffer("is_silent", silent)

    @torch.jit.export
    def add_to(
        self,
        results: dict[str, TensorMap],
        outputs: dict[str, ModelOutput],
        systems: list[System],
        terms: list[Tensor],
        atomic_numbers: Tensor,
        positions: Tensor,
        of_atoms: Labels,
        of_systems: Labels,
    ) -> None:
        """Add this output to `results` if it is requested.

        `terms`, `atomic_numbers` and `positions` belong to the selected atoms, in the order of
        `of_atoms`. Raises the errors of `check` and `forward`.
        """
        if self.name in outputs:
            self.check(outputs[self.name].sample_kind, systems, len(atomic_numbers))
            structure_index = of_atoms.column("system").long()
            values = self.forward(terms, atomic_numbers, positions, structure_index, len(systems))
            # sums are in float64, but the program expects the dtype of its systems
            values = values.to(systems[0].positions.dtype)
            samples = of_atoms if self.is_of_atoms else of_systems
            results[self.name] = map_of(values, samples, self.rank, self.property_name)

    @torch.jit.export
    def check(self, sample_kind: str, systems: list[System], num_chosen: int) -> None:
        """Raise ValueError if this output does not exist for the request.

        The reasons are a wrong sample kind, the dipole of a periodic system, and an output that
        needs all atoms if only some are selected.
        """
        kind = "atom" if self.is_of_atoms else "system"
        if sample_kind != kind:
            raise ValueError(f"{self.name} is one of each {kind}: ask for it so")
        num_atoms = 0
        for system in systems:
            num_atoms += len(system)
            if self.kind == "dipole" and bool(system.pbc.any()):
                raise ValueError(
                    "a periodic structure has no dipole moment of its own: it depends on the cell"
                )
        if self.needs_whole and num_chosen != num_atoms:
            raise ValueError(
                f"{self.name} depends on all atoms of a structure, and only some are selected: "
                "ask for it without domains, or use a file that was written without this head"
            )

    def forward(
        self,
        terms: list[Tensor],
        atomic_numbers: Tensor,
        positions: Tensor,
        structure_index: Tensor,
        num_structures: int,
    ) -> Tensor:
        """Compute the values in float64 from the terms of all heads, for the selected atoms.

        Raises ValueError for an element that the head was fitted without.
        """
        # mypy does not know the types of buffers, and TorchScript cannot read their annotations
        if not bool(self.is_known[atomic_numbers].all()):  # type: ignore[index]
            raise ValueError(f"{self.name} was fitted to {self.known} only")
        numbers = terms[self.index]
        if self.is_spread:
            values = combined_spread(
                self.is_of_atoms, self.is_sum, numbers, structure_index, num_structures
            )
        else:
            values = combined(
                self.kind,
                self.is_sum,
                numbers,
                terms[self.index + 1],
                positions,
                structure_index,
                # metatomic passes a net charge only if every program is required to state it
                positions.new_zeros(num_structures),
            )
        if self.is_of_atoms:
            silent = self.is_silent[atomic_numbers]  # type: ignore[index]
            if bool(silent.any()):
                values = values.clone()
                values[silent] = float("nan")
        return values


class NoHeads(nn.Module):
    """A placeholder for files without heads, because TorchScript needs a module."""

    def forward(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, tile: Tensor
    ) -> list[Tensor]:
        """Return an empty list."""
        return [vectors][:0]


class MetatomicPotential(nn.Module):
    """metatomic's model interface for energies and heads. TorchScript compiles all of it."""

    def __init__(self, potential: Potential, head: int, heads: ResultHeads | None = None) -> None:
        super().__init__()
        self.cutoff = potential.config.cutoff
        self.head = head
        # the graph is traced once, so all structures share the tile size that suits a typical atom
        typical_degree = torch.tensor([round(potential.config.num_neighbours)])
        self.tile_size = cheapest_size(typical_degree)
        self.network = scripted(_energy_graph(potential, self.tile_size))
        outputs, terms = (
            ([], NoHeads()) if heads is None else _head_graph(potential, heads, self.tile_size)
        )
        self.head_outputs = nn.ModuleList(outputs)
        self.head_terms = terms
        # strict, because pairs beyond the cutoff contribute zero and would only cost time
        self.neighbours = NeighborListOptions(cutoff=self.cutoff, full_list=True, strict=True)

    @torch.jit.export
    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        """Request all pairs within the cutoff, each in both directions."""
        return [self.neighbours]

    def forward(
        self, systems: list[System], outputs: dict[str, ModelOutput], selected_atoms: Labels | None
    ) -> dict[str, TensorMap]:
        """Compute energies in eV of systems or atoms, and the outputs of heads.

        If atoms are selected, sums and per-atom outputs include only these atoms. Raises ValueError
        if an output needs whole structures but only some atoms are selected, if an output is
        requested with the wrong sample kind, and for the dipole of a periodic structure.
        """
        results: dict[str, TensorMap] = {}
        if len(outputs) == 0:
            return results
        atoms, atomic_numbers, vectors, sender, receiver = self.graph_of(systems)
        samples = Labels(["system", "atom"], atoms)
        chosen = torch.arange(len(atoms), device=atoms.device)
        if selected_atoms is not None:
            chosen = samples.select(selected_atoms)
            samples = Labels(["system", "atom"], atoms[chosen])
        structure_index = atoms[chosen, 0].long()
        index = torch.arange(len(systems), device=atoms.device)
        of_systems = Labels(["system"], index.unsqueeze(1))
        # sums are in float64, but the program expects the dtype of its systems
        dtype = systems[0].positions.dtype
        head = torch.full_like(atomic_numbers, self.head)

        if "energy" in outputs:
            energies = self.network(atomic_numbers, head, vectors, sender, receiver)[chosen]
            own = samples
            if outputs["energy"].sample_kind != "atom":
                energies = energies.new_zeros(len(systems)).index_add(0, structure_index, energies)
                own = of_systems
            results["energy"] = map_of(energies.to(dtype), own, 0, "energy")
            if len(outputs) == 1:
                return results

        terms: list[Tensor] = []
        for term in self.head_terms(atomic_numbers, head, vectors, sender, receiver):
            terms.append(term[chosen])
        positions = torch.cat([system.positions for system in systems]).double()[chosen]
        numbers = atomic_numbers[chosen]
        # mypy sees only generic modules here, and TorchScript cannot parse a cast
        for output in self.head_outputs:
            output.add_to(  # type: ignore[operator]
                results, outputs, systems, terms, numbers, positions, samples, of_systems
            )
        return results

    def graph_of(self, systems: list[System]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Merge all systems into one graph.

        Returns indices (system, atom) of all atoms (N, 2), atomic numbers (N,), and the edges in
        tile order: vectors (E, 3) in A, senders (E,), and the receiver of each tile.
        """
        atoms: list[Tensor] = []
        types: list[Tensor] = []
        senders: list[Tensor] = []
        receivers: list[Tensor] = []
        vectors: list[Tensor] = []
        first = 0
        for index, system in enumerate(systems):
            # metatomic's vectors point from the first to the second atom, ours from the receiver to
            # the sender
            pairs = system.get_neighbor_list(self.neighbours)
            receivers.append(pairs.samples.column("first_atom").long() + first)
            senders.append(pairs.samples.column("second_atom").long() + first)
            vectors.append(pairs.values.squeeze(2))
            types.append(system.types.long())
            own = torch.arange(len(system), device=system.types.device)
            atoms.append(torch.stack([torch.full_like(own, index), own], 1))
            first += len(system)

        # all systems as one graph, as in a batch
        sender, receiver, tiled_vectors = lay_tiles(
            torch.cat(senders),
            torch.cat(receivers),
            torch.cat(vectors),
            first,
            self.cutoff,
            self.tile_size,
        )
        return torch.cat(atoms), torch.cat(types), tiled_vectors, sender, receiver


def _energy_graph(potential: Potential, tile_size: int) -> torch.fx.GraphModule:
    """Trace the graph that maps edge vectors in tile order to energies (N,) in eV, float64.

    The energies include reference energies and core repulsion.
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


def _head_graph(
    potential: Potential, heads: ResultHeads, tile_size: int
) -> tuple[list[HeadOutput], torch.jit.ScriptModule]:
    """The outputs of the heads, and the graph that computes the terms of these outputs.

    The terms are a list with y and t of each head (`heads/combined.py`), followed by u if the head
    has a spread.
    """
    outputs: list[HeadOutput] = []
    chosen: list[Head] = []
    num_terms = 0
    first: dict[str, int] = {}
    for column, head in heads.columns.items():
        name = head.description.name
        if name not in first:
            first[name] = num_terms
            chosen.append(head)
            num_terms += 3 if head.description.spread else 2
        outputs.append(HeadOutput(head, column, first[name]))
        if has_spread(column, head):
            of_spread = first[name] + 2
            outputs.append(HeadOutput(head, f"{column}_std", of_spread, is_spread=True))
    # the table is zero for unknown elements; they are refused before their terms are used
    tables = [_place_table(head).to(potential.readout.weight.device) for head in chosen]
    turns = any(head.description.features == "equivariant" for head in chosen)

    def function(
        atomic_numbers: Tensor, head: Tensor, vectors: Tensor, sender: Tensor, receiver: Tensor
    ) -> list[Tensor]:
        tiles = Tiles(sender, receiver, vectors, tile_size)
        carried: dict[int, CarriedFeatures] = {}
        terms: list[Tensor] = []
        for own, table in zip(chosen, tables, strict=True):
            # one pass through each network: that of the model, and those of heads with their own
            backbone = in_place_of(potential, own.own).backbone
            if id(backbone) not in carried:
                carried[id(backbone)] = _carried(backbone, atomic_numbers, vectors, tiles, turns)
            features = carried[id(backbone)]
            if own.description.features == "readout":
                hidden = potential.readout.hidden(features.invariants)
                phi = potential.readout.activation(hidden)
                features = CarriedFeatures.of_invariants(phi)
            places = table[atomic_numbers]
            terms.extend(own.terms(features, places))
            if own.description.spread:
                terms.append(own.log_variances(features, places))
        return terms

    return outputs, scripted(trace(function, potential.readout.weight, tile_size))


def _carried(
    backbone: Network, atomic_numbers: Tensor, vectors: Tensor, tiles: Tiles, turns: bool
) -> CarriedFeatures:
    """Features of the atoms; with `turns`, also vectors and tensors."""
    if turns:
        return backbone.carried(atomic_numbers, vectors, tiles)
    return CarriedFeatures.of_invariants(backbone(atomic_numbers, vectors, tiles))


def _place_table(head: Head) -> Tensor:
    """Table (119,) from atomic numbers to positions in a head's list of elements; 0 for others."""
    known, _ = _element_tables(head)
    table = torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.long)
    numbers = torch.nonzero(known)[:, 0]
    table[numbers] = torch.as_tensor(head.places(numbers.numpy()))
    return table


def _element_tables(head: Head) -> tuple[Tensor, Tensor]:
    """Two boolean tables (119,): elements that a head knows, and elements it has no labels for."""
    about = head.description
    known = torch.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=torch.bool)
    silent = known.clone()
    known[[chemical_symbols.index(symbol) for symbol in about.elements]] = True
    if about.silent_elements:
        silent[[chemical_symbols.index(symbol) for symbol in about.silent_elements]] = True
    return known, silent


def _described(output: HeadOutput, about: HeadDescription) -> ModelOutput:
    """The description of a head's output in the file."""
    unit = "e" if output.kind == "charges" else UNITS.get(about.unit, about.unit)
    try:
        unit_conversion_factor(unit, unit)
    except ValueError:
        # metatomic cannot convert this unit, so only the description names it
        unit = ""
    meaning = KINDS[about.kind].meaning if output.kind != "charges" else KINDS["charges"].meaning
    spoken = f"{about.name}: {meaning}, at {about.level_of_theory}, in {about.unit}"
    if output.kind == "charges":
        spoken = f"{about.name}: {meaning}, which is zero here, at {about.level_of_theory}, in e"
    if output.is_spread:
        spoken = f"standard deviation of the error of {spoken}"
    if about.classes:
        spoken = f"{spoken}; {', '.join(about.classes)}"
    kind = "atom" if output.is_of_atoms else "system"
    return ModelOutput(unit=unit, sample_kind=kind, description=spoken)


def write(
    model: LoadedModel,
    level_of_theory: str,
    dtype: str,
    path: Path,
    heads: ResultHeads | None = None,
) -> None:
    """Compile a model for one level of theory, and write it to `path` with its metadata."""
    # traced on the CPU; the program moves the file to its own device
    potential = moved(model.potential, "cpu", dtype)
    config = potential.config
    head = config.levels_of_theory.index(level_of_theory)
    plain = MetatomicPotential(potential, head, heads).eval()
    module = torch.jit.script(plain)

    energy = ModelOutput(
        unit="eV", sample_kind="atom", description=f"total energy at {level_of_theory}"
    )
    outputs = {"energy": energy}
    if heads is not None:
        for output in plain.head_outputs:
            assert isinstance(output, HeadOutput)
            own = heads.head_of(output.column)
            outputs[output.name] = _described(output, own.description)
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=sorted(trained_elements(model.record, level_of_theory)),
        interaction_range=potential.backbone.receptive_field,
        length_unit="angstrom",
        supported_devices=["cpu", "cuda"],
        dtype=dtype,
    )
    with _no_extensions():
        AtomisticModel(module, _metadata(model, level_of_theory), capabilities).save(path)


def _metadata(model: LoadedModel, level_of_theory: str) -> ModelMetadata:
    """The metadata of the model in the file."""
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

    Otherwise metatomic would store their names and require them wherever the file is used.
    """
    loaded = torch.ops.loaded_libraries
    torch.ops.loaded_libraries = set()
    try:
        yield
    finally:
        torch.ops.loaded_libraries = loaded
