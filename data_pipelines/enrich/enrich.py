"""Make cheaply labelled structures of rare elements, as a separate data set.

For every chosen element, training structures with a common, chemically similar element (a relative)
are selected. The chosen element replaces the relative, with distances scaled by covalent radii. The
result is rattled and labelled by an oracle. The new labels have a separate level of theory, so a
model that trains on both data sets has a head for each of them and shares all other weights.

A structure depends only on the seed, the element and its number, not on the number of processes.
The `source` entry of the new dataset_info.json records the settings, how many structures each
element got from which relative, and why candidates were refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, chemical_symbols
from pydantic import Field, field_validator, model_validator
from rich.progress import track

from ...core.code_identity import code_identity
from ...core.destination import DATA_SETS, check_destination
from ...core.errors import EvenfieldError
from ...core.files import file_errors, file_sha256
from ...core.workers import worker_pool
from ..census.census import read_census
from ..convert.convert import ConvertConfig, is_unfinished, write_data_set
from ..convert.splits import check_symbols
from ..corpus.licences import normalised, together
from ..demo.geometry import has_close_contact
from ..demo.oracles import XTB_LEVELS, RejectedStructure
from ..physics.residual import physics_of
from ..store.blocks import iter_structures
from ..store.folder_files import refuse_files_of_others
from ..store.shards import read_info
from ..structure import BadRecordError, Structure, check_structure
from .kept import KeptLabels, Labels, Made
from .label_oracles import OracleConfig, check_oracle, label, new_calculator
from .relatives import relatives
from .relaxation import RelaxationConfig, relaxed
from .swap import is_too_dense, with_element


# usually at most one structure in ten is refused, so after ten in a row more would not help
MAX_ATTEMPTS = 10
STRUCTURES_PER_TASK = 8
# a strain of three standard deviations of this size halves the length of a cell
MOST_STRAIN = 0.15


class EnrichConfig(OracleConfig):
    """Which elements get cheap labels, from which oracle, and how structures are made."""

    oracle_licence: str | None = Field(
        default=None,
        description="SPDX identifier of the licence of the oracle's weights, which joins that of "
        "the data",
    )
    elements: Literal["rare", "all"] | list[str] = Field(
        default="rare", description="rare, all, or a list of symbols"
    )
    excluded: list[str] = Field(
        default=[],
        description="elements that the oracle was not made for: no structure has them, neither as "
        "the new element nor as a relative nor from the start",
    )
    source_level: str | None = Field(
        default=None,
        description="level of theory at which elements are counted and structures are taken; by "
        "default the one with the most training structures",
    )
    level_of_theory: str | None = Field(
        default=None, description="of the new labels; by default the name of the oracle"
    )
    rare: int = Field(
        default=20, ge=0, description="most training structures of an element that counts as rare"
    )
    structures_per_element: int = Field(
        default=100, ge=1, description="structures to make for each element"
    )
    relatives: int = Field(
        default=3, ge=1, description="common elements that lend an element their structures"
    )
    most_atoms: int | None = Field(
        default=None, ge=1, description="larger training structures are not taken"
    )
    swap_all: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the structures in which every other element gives way to a relative "
        "too, for new compounds",
    )
    rattle: tuple[float, float] = Field(
        default=(0.02, 0.1),
        description="bounds of the standard deviation of random moves, A",
    )
    strain: tuple[float, float] = Field(
        default=(0.0, 0.0),
        description="bounds of the standard deviation of each component of a random strain of "
        "periodic cells",
    )
    reuse_calculator: bool = Field(
        default=False,
        description="one calculator for all structures of a process: faster where making one reads "
        "weights, and right only if it keeps nothing from one structure to the next",
    )
    largest_force: float = Field(
        default=15.0, gt=0, description="structures with a larger force are refused, eV/A"
    )
    relaxation: RelaxationConfig = Field(
        default=RelaxationConfig(),
        description="a potential that relaxes the structures before they are labelled",
    )
    seed: int = Field(default=0, ge=0, description="every structure follows from it")

    @field_validator("elements")
    @classmethod
    def _check_elements(cls, elements: str | list[str]) -> str | list[str]:
        if isinstance(elements, list):
            check_symbols(elements)
            if not elements:
                raise ValueError("elements=[] names none: use rare, all or symbols")
        return elements

    @field_validator("excluded")
    @classmethod
    def _check_excluded(cls, excluded: list[str]) -> list[str]:
        check_symbols(excluded)
        return excluded

    @field_validator("rattle")
    @classmethod
    def _check_rattle(cls, rattle: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= rattle[0] <= rattle[1] <= 1:
            raise ValueError("has a lower and an upper bound, from 0 to 1 A")
        return rattle

    @field_validator("strain")
    @classmethod
    def _check_strain(cls, strain: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= strain[0] <= strain[1] <= MOST_STRAIN:
            raise ValueError(f"has a lower and an upper bound, from 0 to {MOST_STRAIN}")
        return strain

    @field_validator("oracle_licence")
    @classmethod
    def _check_licence(cls, licence: str | None) -> str | None:
        if licence is not None and normalised(licence) is None:
            raise ValueError(f"'{licence}' is not an SPDX identifier such as MIT or BSD-3-Clause")
        return licence

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        both = [symbol for symbol in self.elements if symbol in self.excluded]
        if isinstance(self.elements, list) and both:
            raise ValueError(f"elements and excluded both name {', '.join(both)}")
        return self

    @property
    def new_level(self) -> str:
        """Level of theory of the new labels."""
        return self.level_of_theory or self.level_of_oracle


class EnrichError(EvenfieldError):
    """A data set cannot be enriched with these settings."""


@dataclass(frozen=True)
class Enrichment:
    """Summary of an enrichment."""

    level_of_theory: str
    """Of the new labels."""
    main_level: str
    """Level of theory of the structures that were used."""
    structures: dict[str, int]
    """Element -> number of new structures."""
    from_relatives: dict[str, dict[str, int]]
    """Element -> element that it replaced -> number of new structures."""
    refused: dict[str, int]
    """Reason -> number of refused candidates; others were tried in their place."""

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON content."""
        return {
            "level_of_theory": self.level_of_theory,
            "main_level": self.main_level,
            "structures": self.structures,
            "from_relatives": self.from_relatives,
            "refused": self.refused,
        }


def enrich(
    data: Path | str,
    out: Path | str,
    config: EnrichConfig,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Enrichment:
    """Write a data set of cheaply labelled structures for elements of the data set `data`.

    Worker processes are spawned, so call this from a module or under
    `if __name__ == "__main__":`. Labels are stored next to `out` until it is complete. If an
    enrichment is interrupted, the same call (same data, settings and oracle) continues it.

    workers: number of processes, by default one per core.
    overwrite: replace another data set in `out`, and labels of another unfinished enrichment.

    Raises DestinationError for an occupied `out`, EvenfieldError for an oracle that cannot be used,
    and EnrichError if no element, no relative or no label is found. In all these cases, no data set
    is written.
    """
    data = Path(data)
    out = Path(out)
    kept = KeptLabels(out)
    belonging = _belonging(data, config)
    if not overwrite and kept.belongs(belonging):
        finished = _finished(out, config)
        if finished is not None:
            # the last run stopped between writing the data set and removing the labels
            kept.remove()
            return finished
    # an interrupted run may have left a partial data set
    is_own_part = is_unfinished(out) and kept.belongs(belonging)
    may_replace = overwrite or is_own_part
    check_destination(out, overwrite=may_replace, kinds=DATA_SETS, inputs=[data])
    refuse_files_of_others(out)
    if out.resolve().name == data.resolve().name:
        raise EnrichError(
            "has the folder name of the data set, and the two could not be mixed",
            file=out,
            remedy="name another folder",
        )
    check_oracle(config.oracle, config.oracle_settings)
    if config.relaxation.calculator is not None:
        check_oracle(
            config.relaxation.calculator,
            config.relaxation.calculator_settings,
            "relaxation.calculator",
        )

    info = read_info(data)
    levels = read_census(data)["levels_of_theory"]
    main_level = _main_level(data, levels, config)
    if config.new_level in levels and config.level_of_theory is None:
        raise EnrichError(
            f"has the level of theory {config.new_level} already",
            file=data,
            remedy=f"set level_of_theory={config.new_level} if the oracle is the same to the last "
            "setting, or another name for a head of its own",
        )

    sources = _sources(data, main_level, config)
    train_elements = {
        symbol: count
        for symbol, count in levels[main_level]["train_elements"].items()
        if symbol not in config.excluded
    }
    plan = _plan(data, train_elements, sources, config)
    kin = _kin(train_elements, config.relatives) if config.swap_all else {}
    with kept.open(belonging, overwrite=overwrite) as labels:
        structures, enrichment, failure = _make_all(
            plan, kin, sources, main_level, config, workers, labels
        )
    if not structures:
        kept.remove()
        reasons = ", ".join(f"{count} {reason}" for reason, count in enrichment.refused.items())
        last = f"; the last: {failure}" if failure else ""
        raise EnrichError(
            f"gives no structure that {config.oracle} labels ({reasons}{last})",
            file=data,
            remedy="choose another oracle or other elements",
        )

    origin = {
        "file": f"{info['source']['file']} enriched by {config.oracle}",
        "sha256": info["source"]["sha256"],
        "enrichment": {"settings": config.model_dump(mode="json"), **enrichment.to_dict()},
    }
    licence = info["licence"]
    if config.oracle_licence is not None:
        licence = together([licence, config.oracle_licence])
    about = ConvertConfig(
        licence=licence,
        description=f"elements swapped into structures of another data set, labelled by "
        f"{config.oracle}",
        # both data sets are used in one training, so their physics must be the same
        physics=physics_of(info, data),
    )
    write_data_set(structures, out, origin, about, overwrite=may_replace)
    kept.remove()
    return enrichment


def _finished(out: Path, config: EnrichConfig) -> Enrichment | None:
    """The summary of a finished enrichment with the same settings in `out`; None otherwise."""
    if is_unfinished(out) or not (out / "dataset_info.json").is_file():
        return None
    about = read_info(out)["source"].get("enrichment")
    if about is None or about["settings"] != config.model_dump(mode="json"):
        return None
    return Enrichment(**{name: about[name] for name in Enrichment.__dataclass_fields__})


def _belonging(data: Path, config: EnrichConfig) -> dict[str, Any]:
    """What identifies an enrichment, as JSON content: data, settings and code of the oracle."""
    with file_errors(data):
        digest = file_sha256(data / "dataset_info.json")
    return {
        "data": digest,
        "settings": config.model_dump(mode="json"),
        "oracle": code_identity(config.oracle, config.oracle_settings),
        "relaxation": code_identity(
            config.relaxation.calculator or "", config.relaxation.calculator_settings
        ),
    }


def _main_level(data: Path, levels: dict[str, Any], config: EnrichConfig) -> str:
    trained = {name: row["structures"].get("train", 0) for name, row in levels.items()}
    if config.source_level is not None:
        if not trained.get(config.source_level):
            raise EnrichError(
                f"has no training structure at source_level={config.source_level}",
                file=data,
                remedy=f"choose one of {', '.join(trained)}",
            )
        main_level = config.source_level
    else:
        main_level = max(trained, key=lambda name: trained[name])
    return main_level


def _sources(data: Path, level: str, config: EnrichConfig) -> list[Structure]:
    """Training structures into which elements may be swapped, without labels.

    Raises EnrichError if there are none.
    """
    isolated_only = config.oracle in XTB_LEVELS
    most_atoms = config.most_atoms
    excluded = [atomic_numbers[symbol] for symbol in config.excluded]
    found = []
    for structure in iter_structures(data, "train"):
        if structure.level_of_theory != level or (isolated_only and structure.pbc.any()):
            continue
        if most_atoms is not None and len(structure.atomic_numbers) > most_atoms:
            continue
        if np.isin(structure.atomic_numbers, excluded).any():
            continue
        # copies, because views into a block would keep the whole block in memory
        found.append(
            Structure(
                atomic_numbers=structure.atomic_numbers.copy(),
                positions=structure.positions.astype(np.float64),
                cell=structure.cell.copy(),
                pbc=structure.pbc.copy(),
                level_of_theory=level,
                structure_id=structure.structure_id,
                group=structure.group,
            )
        )
    if not found:
        kind = "isolated training structure" if isolated_only else "training structure"
        if most_atoms is not None:
            kind += f" of at most {most_atoms} atoms"
        if config.excluded:
            kind += f" without {', '.join(config.excluded)}"
        remedy = "name a source_level that has some"
        if isolated_only:
            remedy += ", or an oracle for periodic structures"
        raise EnrichError(f"has no {kind} at {level}", file=data, remedy=remedy)
    return found


def _plan(
    data: Path, train_elements: dict[str, int], sources: list[Structure], config: EnrichConfig
) -> dict[int, dict[int, list[int]]]:
    """Element -> relative that it replaces -> indices of `sources` that contain the relative.

    train_elements: symbol -> number of training structures with the element.

    Raises EnrichError if no element is chosen or if no relative is available.
    """
    counts = {atomic_numbers[symbol]: count for symbol, count in train_elements.items()}
    common = {number for number, count in counts.items() if count > config.rare}
    if config.elements == "rare":
        chosen = sorted(set(counts) - common)
    elif config.elements == "all":
        chosen = sorted(counts)
    else:
        chosen = sorted(atomic_numbers[symbol] for symbol in config.elements)
    if not chosen:
        raise EnrichError(
            f"has no element in at most rare={config.rare} training structures",
            file=data,
            remedy="raise rare, or name elements",
        )

    having: dict[int, list[int]] = {}
    for index, structure in enumerate(sources):
        for number in structure.elements.tolist():
            having.setdefault(number, []).append(index)
    candidates = sorted(common & set(having))
    if not candidates:
        raise EnrichError(
            f"has no element in more than rare={config.rare} training structures to swap for",
            file=data,
            remedy="lower rare",
        )
    return {
        number: {other: having[other] for other in relatives(number, candidates, config.relatives)}
        for number in chosen
    }


def _kin(train_elements: dict[str, int], number: int) -> dict[int, list[int]]:
    """Element -> elements that may replace it if all elements of a structure are swapped."""
    known = [atomic_numbers[symbol] for symbol in train_elements]
    kin = {}
    for element in known:
        others = [other for other in known if other != element]
        kin[element] = relatives(element, others, number)
    return kin


def _make_all(
    plan: dict[int, dict[int, list[int]]],
    kin: dict[int, list[int]],
    sources: list[Structure],
    main_level: str,
    config: EnrichConfig,
    workers: int | None,
    labels: Labels,
) -> tuple[list[Structure], Enrichment, str]:
    """Run all tasks; returns the structures, a summary, and the last error of a calculator.

    labels: outcomes of tasks from earlier runs; new outcomes are added to them.
    """
    tasks = list(_tasks(plan, sources, config))
    missing = [number for number in range(len(tasks)) if number not in labels.made]
    make = partial(_make, config, kin)
    remaining = [tasks[number] for number in missing]
    try:
        if workers == 1:
            _keep(labels, missing, map(make, remaining))
        elif remaining:
            with worker_pool(workers) as executor:
                results = executor.map(make, remaining, chunksize=STRUCTURES_PER_TASK)
                _keep(labels, missing, results)
    finally:
        labels.flush()
    made = [labels.made[number] for number in range(len(tasks))]

    structures = []
    by_relative: dict[str, Counter[str]] = {}
    refused: Counter[str] = Counter()
    failure = ""
    for number, one in enumerate(made):
        refused.update(one.refused)
        failure = one.failure or failure
        if one.atoms is None:
            continue
        guest, host = chemical_symbols[one.element], chemical_symbols[one.host]
        by_relative.setdefault(guest, Counter())[host] += 1
        structures.append(
            Structure.from_atoms(
                one.atoms,
                config.new_level,
                f"enriched-{config.seed}-{number}-{guest}-for-{host}-in-{one.source_id}",
                split="train",
                **one.atoms.calc.results,
            )
        )
    totals = {symbol: sum(hosts.values()) for symbol, hosts in by_relative.items()}
    from_relatives = {symbol: dict(hosts) for symbol, hosts in by_relative.items()}
    enrichment = Enrichment(config.new_level, main_level, totals, from_relatives, dict(refused))
    return structures, enrichment, failure


def _keep(labels: Labels, numbers: list[int], results: Iterator[Made]) -> None:
    """Add results to the labels as they arrive."""
    shown = track(results, "labelling", total=len(numbers), transient=True)
    for number, made in zip(numbers, shown, strict=True):
        labels.add(number, made)


Task = tuple[int, int, list[tuple[int, Structure]]]
"""Element, index of the structure for this element, and (relative, source) candidates in order."""


def _tasks(
    plan: dict[int, dict[int, list[int]]], sources: list[Structure], config: EnrichConfig
) -> Iterator[Task]:
    for element, hosts in plan.items():
        for number in range(config.structures_per_element):
            rng = np.random.default_rng([config.seed, element, number])
            chosen = []
            for _ in range(MAX_ATTEMPTS):
                host = int(rng.choice(list(hosts)))
                chosen.append((host, sources[int(rng.choice(hosts[host]))]))
            yield element, number, chosen


def _make(config: EnrichConfig, kin: dict[int, list[int]], task: Task) -> Made:
    """Label the first candidate of a task that is neither refused nor fails. Runs in workers."""
    element, number, chosen = task
    # the last number makes the sequence differ from the one that chose the sources
    rng = np.random.default_rng([config.seed, element, number, 1])
    refused = []
    failure = ""
    for host, source in chosen:
        parent = Atoms(
            numbers=source.atomic_numbers,
            positions=source.positions,
            cell=source.cell,
            pbc=source.pbc,
        )
        others = {}
        if config.swap_all and rng.random() < config.swap_all:
            changing = [other for other in source.elements.tolist() if other != host]
            others = {other: int(rng.choice(kin[other])) for other in changing}
        candidate = with_element(
            rng, parent, host, element, config.rattle, others=others, strain=config.strain
        )
        try:
            refuse_bad(candidate)
            if config.relaxation.calculator is not None:
                candidate = relaxed(rng, candidate, _relaxing(config), config.relaxation)
                refuse_bad(candidate)
            atoms = label(candidate, _calculator(config), config.largest_force)
        except RejectedStructure as rejected:
            refused.append(rejected.reason)
            failure = rejected.detail or failure
            continue
        return Made(element, host, atoms, source.structure_id, tuple(refused), failure)
    return Made(element, chosen[-1][0], None, "", tuple(refused), failure)


def _calculator(config: EnrichConfig) -> Calculator:
    return _made_calculator(config, config.oracle, config.oracle_settings)


def _relaxing(config: EnrichConfig) -> Calculator:
    """The calculator that relaxes structures before they are labelled."""
    assert config.relaxation.calculator is not None
    return _made_calculator(
        config, config.relaxation.calculator, config.relaxation.calculator_settings
    )


def _made_calculator(config: EnrichConfig, name: str, settings: dict[str, Any]) -> Calculator:
    if config.reuse_calculator:
        return _only_calculator(name, json.dumps(settings))
    # calculators have state, and a result must not depend on structures labelled before
    return new_calculator(name, settings)


@cache
def _only_calculator(name: str, settings: str) -> Calculator:
    """The only calculator of this process for a name and settings (as JSON text)."""
    return new_calculator(name, json.loads(settings))


def refuse_bad(candidate: Atoms) -> None:
    """Raise RejectedStructure for a structure that is not worth labelling."""
    if has_close_contact(candidate):
        raise RejectedStructure("atoms_too_close")
    if is_too_dense(candidate):
        raise RejectedStructure("too_dense")
    try:
        check_structure(Structure.from_atoms(candidate, "", ""))
    except BadRecordError as error:
        raise RejectedStructure("bad_geometry", error.message) from error
