"""Write an inspection to FOLDER/inspection.png and FOLDER/inspection.html."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from ase.formula import Formula

from ...core.destination import PAGES, check_destination
from ...core.figures.style import check_drawing
from ...core.files import file_errors, write_atomically
from ...core.labels import LABELS
from ...core.numbers import ANGSTROM, written_unit
from ...core.pages.page import Picture, Section, Table, Text, write_page
from ..store.folder_files import INSPECTION_PICTURE
from ..store.shards import ARROW_SCHEMA
from ..structure import SPLITS
from .inspection import MAX_SAMPLED, Example, Inspection
from .inspection_measures import CUTOFF
from .inspection_picture import draw_inspection
from .outliers import KINDS, MAX_LISTED, MIN_BOND_SHARE, ROBUST_Z


# column -> count of numbers, unit, meaning; label columns are described by the registry of labels
MEANINGS = {
    "structure_id": ("", "", "unique in the data set"),
    "group": ("", "", "structures of one group are in one split"),
    "level_of_theory": ("", "", "energies of one level share a zero"),
    "atomic_numbers": ("N", "", "1 to 118"),
    "positions": ("3N", ANGSTROM, "Cartesian"),
    "cell": ("9", ANGSTROM, "rows are lattice vectors; zero when not periodic"),
    "pbc": ("3", "", "periodic along each lattice vector"),
}


def write_inspection(inspection: Inspection) -> tuple[Path, Path]:
    """Write the picture and the page into the data set's folder, and return their paths.

    Raises DestinationError if the user has other files with these names, and FileError if the
    folder cannot be written.
    """
    picture_path = inspection.folder / "inspection.png"
    page_path = inspection.folder / "inspection.html"
    check_drawing(picture_path, INSPECTION_PICTURE)
    check_destination(
        page_path,
        overwrite=True,
        file_kind=PAGES,
        elsewhere="rename that file, since this command writes under its name",
    )
    png = draw_inspection(inspection)
    with file_errors(picture_path):
        write_atomically(picture_path, png)
    alt = (
        "Histograms of energies after E0, forces, neighbours, distances and sizes, "
        "and the share of labels present"
    )
    explanation = (
        "Counts are logarithmic. What lies beyond the first or the last bin is counted in it."
    )
    sections = [
        Section("", [Text(text) for text in about(inspection)]),
        Section("Distributions", [Picture(alt, png), Text(explanation, style="remark")]),
        Section(
            "Contents",
            [level_table(inspection), _typical_values(inspection), _schema_table(inspection)],
        ),
        Section("Examples", [_example_table(inspection.examples)]),
        Section(
            "Suspected outliers",
            [Text(_rule()), outlier_counts(inspection), *_outlier_tables(inspection)],
        ),
    ]
    title = f"Data set {inspection.folder.name}"
    return picture_path, write_page(page_path, title, sections)


def about(inspection: Inspection) -> list[str]:
    """Sentences about the size of the data set and the sample."""
    total = inspection.num_structures
    sampled = inspection.num_sampled
    num_levels = len(inspection.structures)
    levels = "level" if num_levels == 1 else "levels"
    texts = [f"{total:,} structures at {num_levels} {levels} of theory."]
    if sampled < total:
        texts.append(
            "Labels, sizes and counts are of all structures. Medians, neighbours, distances and "
            f"isolated atoms are of a sample of {sampled:,} structures, evenly spaced over the "
            f"data set (at most {MAX_SAMPLED:,})."
        )
    if inspection.without_e0:
        texts.append(
            f"{inspection.without_e0:,} energies are in no histogram: the training split of their "
            "level of theory lacks one of their elements, which therefore has no E0."
        )
    return texts


def level_table(inspection: Inspection) -> Table:
    """A table of structures by level of theory and split, and how many have each label."""
    splits = [
        split
        for split in SPLITS
        if any(split in counts for counts in inspection.structures.values())
    ]
    rows = []
    for level in inspection.levels:
        by_split = inspection.structures[level]
        rows.append(
            [
                level,
                *(f"{by_split.get(split, 0):,}" for split in splits),
                f"{sum(by_split.values()):,}",
                *(f"{inspection.labels[level][name]:,}" for name in LABELS),
            ]
        )
    header = ["level of theory", *splits, "all", *(f"with {name}" for name in LABELS)]
    return Table("Structures by level of theory", header, rows)


def _typical_values(inspection: Inspection) -> Table:
    rows = []
    for level, spreads in inspection.spreads.items():
        for kind, spread in spreads.items():
            quantity = f"{KINDS[kind].quantity} ({KINDS[kind].unit})"
            rows.append([level, quantity, f"{spread.median:.4g}", f"{spread.sigma:.3g}"])
    header = ["level of theory", "quantity of a structure", "median", "robust standard deviation"]
    return Table("Typical values", header, rows)


def _schema_table(inspection: Inspection) -> Table:
    rows = []
    for column in ARROW_SCHEMA:
        # remove Arrow's names for the items of a list
        stored_as = str(column.type).replace("element: ", "").replace("item: ", "")
        if column.name in LABELS:
            label = LABELS[column.name]
            numbers = str(3**label.rank) if label.per == "structure" else f"{3**label.rank}N"
            unit = written_unit(label.unit)
            meaning = f"{label.meaning}; null where it is unknown"
            present = sum(labels[column.name] for labels in inspection.labels.values())
        else:
            numbers, unit, meaning = MEANINGS[column.name]
            present = inspection.num_structures
        share = f"{present / inspection.num_structures:.1%}"
        rows.append([column.name, stored_as, numbers, unit, share, meaning])
    header = ["column", "stored as", "numbers", "unit", "present", "meaning"]
    return Table("Schema, N atoms in a structure", header, rows, words=True)


def _example_table(examples: list[Example]) -> Table:
    """A table with one structure per column and one property per row."""
    names = [
        "split",
        "group",
        "level of theory",
        "formula",
        "atoms",
        "periodic along",
        f"cell ({ANGSTROM})",
        f"first atom ({ANGSTROM})",
        "energy (eV)",
        "energy after E0 (eV/atom)",
        f"largest force (eV/{ANGSTROM})",
        "pressure (GPa)",
    ]
    columns = [_properties(example) for example in examples]
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    header = ["", *(example.structure.structure_id for example in examples)]
    return Table("First, middle and last structure of the sample", header, rows, words=True)


def _properties(example: Example) -> list[str]:
    """The cells of an example's column, in the order of the rows."""
    structure = example.structure
    symbols = structure.to_atoms().get_chemical_symbols()
    directions = [name for name, periodic in zip("abc", structure.pbc, strict=True) if periodic]
    return [
        example.split,
        structure.group,
        structure.level_of_theory,
        Formula.from_list(symbols).format("metal"),
        str(len(structure)),
        ", ".join(directions) or "nothing",
        "; ".join(_coordinates(vector) for vector in structure.cell),
        _coordinates(structure.positions[0]),
        "-" if structure.energy is None else f"{structure.energy:.6f}",
        _number(example.energy),
        _number(example.force),
        _number(example.pressure),
    ]


def _coordinates(vector: list[float]) -> str:
    return " ".join(f"{component:.3f}" for component in vector)


def _number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "-"


def _rule() -> str:
    floors = ", ".join(
        f"{kind.floor:g} {kind.unit} for the {kind.quantity}"
        for kind in KINDS.values()
        if kind.floor
    )
    return (
        f"A structure is suspect when it is more than {ROBUST_Z:g} robust standard deviations from "
        f"the median of its level of theory and more than {floors}; or when two of its atoms are "
        f"closer than {MIN_BOND_SHARE} of the sum of their covalent radii; or when it is periodic "
        f"and has an atom without a neighbour within {CUTOFF:g} {ANGSTROM}. It may still be right: "
        "look at it before you remove it."
    )


def outlier_counts(inspection: Inspection) -> Table:
    """A table of outliers by kind: how many among how many structures, and the worst one."""
    rows = []
    for kind, suspects in inspection.outliers.items():
        sampled_only = kind in ("distance", "isolated")
        among = inspection.num_sampled if sampled_only else inspection.num_structures
        worst = "-"
        if suspects.worst:
            outlier = suspects.worst[0]
            worst = f"{outlier.structure_id} ({outlier.split}): {outlier.reason}"
        rows.append([KINDS[kind].title, f"{suspects.count:,}", f"{among:,}", worst])
    return Table("Suspects by kind", ["kind", "suspects", "among", "the worst"], rows, words=True)


def _outlier_tables(inspection: Inspection) -> list[Table]:
    """Tables of the worst outliers, one for each kind that has any."""
    tables = []
    for kind, suspects in inspection.outliers.items():
        if not suspects.worst:
            continue
        shown = str(suspects.count)
        if suspects.count > MAX_LISTED:
            shown = f"the worst {MAX_LISTED} of {suspects.count:,}"
        rows = [[outlier.structure_id, outlier.split, outlier.reason] for outlier in suspects.worst]
        caption = f"{KINDS[kind].title.capitalize()}: {shown}"
        tables.append(Table(caption, ["structure_id", "split", "reason"], rows, words=True))
    return tables
