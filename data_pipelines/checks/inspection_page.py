"""An inspection as FOLDER/inspection.png and FOLDER/inspection.html, a page that loads nothing from anywhere."""

from __future__ import annotations

from base64 import b64encode
from math import isfinite
from pathlib import Path

from ase.formula import Formula
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...core.files import write_atomically
from ..store.shards import ARROW_SCHEMA
from ..structure import SPLITS
from .inspection import MAX_SAMPLED, Example, Inspection
from .inspection_measures import CUTOFF
from .inspection_picture import draw_inspection
from .outliers import KINDS, MAX_LISTED, MIN_BOND_SHARE, ROBUST_Z


TEMPLATES = Path(__file__).parent / "templates"
Table = tuple[str, list[str], list[list[str]]]  # caption, header, rows
MEANINGS = {  # column -> shape, unit, meaning
    "structure_id": ("", "", "unique in the data set"),
    "group": ("", "", "structures of one group stay on one side of a split"),
    "level_of_theory": ("", "", "energies of one level share a zero"),
    "atomic_numbers": ("N", "", "1 to 118"),
    "positions": ("3N", "\u00c5", "Cartesian"),
    "cell": ("9", "\u00c5", "rows are lattice vectors; zero when not periodic"),
    "pbc": ("3", "", "periodic along each lattice vector"),
    "energy": ("1", "eV", "total energy, or null"),
    "forces": ("3N", "eV/\u00c5", "or null"),
    "stress": ("9", "eV/\u00c5\u00b3", "tensile-positive, or null"),
}


def write_inspection(inspection: Inspection) -> tuple[Path, Path]:
    """Write the picture and the page into the data set's folder; returns their paths."""
    picture, page = inspection.folder / "inspection.png", inspection.folder / "inspection.html"
    png = draw_inspection(inspection)
    write_atomically(picture, png)
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("inspection.html.j2").render(
        title=f"Data set {inspection.folder.name}",
        about=about(inspection),
        picture=b64encode(png).decode(),
        levels=level_table(inspection),
        quantities=_quantity_table(inspection),
        schema=_schema_table(inspection),
        examples=_example_table(inspection.examples),
        rule=_rule(),
        counts=outlier_counts(inspection),
        listed=_outlier_tables(inspection),
    )
    write_atomically(page, text)
    return picture, page


def about(inspection: Inspection) -> list[str]:
    """What was looked at, in sentences."""
    total, sampled = inspection.num_structures, inspection.num_sampled
    levels = len(inspection.structures)
    texts = [f"{total:,} structures at {levels} {'level' if levels == 1 else 'levels'} of theory."]
    if sampled < total:
        texts.append(
            f"Labels, sizes and counts are of all structures; medians, neighbours, distances and isolated atoms of a "
            f"sample of {sampled:,}, evenly spaced over the data set (at most {MAX_SAMPLED:,})."
        )
    if inspection.without_e0:
        texts.append(
            f"{inspection.without_e0:,} energies are in no histogram: an element has no E0, because the training split "
            "of its level of theory lacks it."
        )
    return texts


def level_table(inspection: Inspection) -> Table:
    """Structures by level of theory and split, and the share of them with each label."""
    splits = [
        split
        for split in SPLITS
        if any(split in counts for counts in inspection.structures.values())
    ]
    rows = []
    for level, counts in sorted(
        inspection.structures.items(), key=lambda item: -sum(item[1].values())
    ):
        total = sum(counts.values())
        labels = [f"{inspection.labels[level][name]:,}" for name in ("energy", "forces", "stress")]
        rows.append(
            [level, *(f"{counts.get(split, 0):,}" for split in splits), f"{total:,}", *labels]
        )
    header = ["level of theory", *splits, "all", "with energy", "with forces", "with stress"]
    return "Structures by level of theory", header, rows


def _quantity_table(inspection: Inspection) -> Table:
    rows = []
    for level, spreads in inspection.spreads.items():
        for kind, spread in spreads.items():
            about_kind = KINDS[kind]
            numbers = [f"{spread.median:.4g}", f"{spread.sigma:.3g}"]
            rows.append([level, f"{about_kind.quantity} ({about_kind.unit})", *numbers])
    header = ["level of theory", "quantity of a structure", "median", "robust standard deviation"]
    return "Typical values", header, rows


def _schema_table(inspection: Inspection) -> Table:
    counts = {
        name: sum(labels[name] for labels in inspection.labels.values())
        for name in ("energy", "forces", "stress")
    }
    rows = []
    for column in ARROW_SCHEMA:
        kind = str(column.type).replace("element: ", "").replace("item: ", "")
        present = (
            f"{counts.get(column.name, inspection.num_structures) / inspection.num_structures:.1%}"
        )
        shape, unit, meaning = MEANINGS[column.name]
        rows.append([column.name, kind, shape, unit, present, meaning])
    return (
        "Schema, N atoms in a structure",
        ["column", "stored as", "numbers", "unit", "present", "meaning"],
        rows,
    )


def _example_table(examples: list[Example]) -> Table:
    """Records side by side, one property a row."""
    properties = {
        "split": lambda e: e.split,
        "group": lambda e: e.structure.group,
        "level of theory": lambda e: e.structure.level_of_theory,
        "formula": lambda e: Formula.from_list(
            e.structure.to_atoms().get_chemical_symbols()
        ).format("metal"),
        "atoms": lambda e: str(len(e.structure)),
        "periodic along": lambda e: (
            ", ".join(v for v, p in zip("abc", e.structure.pbc, strict=True) if p) or "nothing"
        ),
        "cell (\u00c5)": lambda e: "; ".join(
            " ".join(f"{x:.3f}" for x in row) for row in e.structure.cell
        ),
        "first atom (\u00c5)": lambda e: " ".join(f"{x:.3f}" for x in e.structure.positions[0]),
        "energy (eV)": lambda e: "-" if e.structure.energy is None else f"{e.structure.energy:.6f}",
        "energy after E0 (eV/atom)": lambda e: _number(e.energy),
        "largest force (eV/\u00c5)": lambda e: _number(e.force),
        "pressure (GPa)": lambda e: _number(e.pressure),
    }
    rows = [[name, *(text(example) for example in examples)] for name, text in properties.items()]
    return (
        "First, middle and last record of the sample",
        ["", *(e.structure.structure_id for e in examples)],
        rows,
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else "-"


def _rule() -> str:
    floors = ", ".join(
        f"{kind.floor:g} {kind.unit} for the {kind.quantity}"
        for kind in KINDS.values()
        if kind.floor
    )
    return (
        f"A suspect lies more than {ROBUST_Z:g} robust standard deviations from the median of its level of theory, and "
        f"more than {floors}; or has two atoms closer than {MIN_BOND_SHARE} of the sum of their covalent radii; or is "
        f"periodic and has an atom without a neighbour within {CUTOFF:g} \u00c5. "
        "It may be right: look before you remove it."
    )


def outlier_counts(inspection: Inspection) -> Table:
    """How many suspects of each kind there are, among how many structures, and the worst of them."""
    rows = []
    for kind, suspects in inspection.outliers.items():
        among = (
            inspection.num_sampled
            if kind in ("distance", "isolated")
            else inspection.num_structures
        )
        worst = suspects.worst[0] if suspects.worst else None
        text = f"{worst.structure_id} ({worst.split}): {worst.reason}" if worst else "-"
        rows.append([KINDS[kind].title, f"{suspects.count:,}", f"{among:,}", text])
    return "Suspects by kind", ["kind", "suspects", "among", "the worst"], rows


def _outlier_tables(inspection: Inspection) -> list[Table]:
    tables = []
    for kind, suspects in inspection.outliers.items():
        shown = (
            f"the worst {MAX_LISTED} of {suspects.count:,}"
            if suspects.count > MAX_LISTED
            else str(suspects.count)
        )
        rows = [[o.structure_id, o.split, o.reason] for o in suspects.worst]
        if rows:
            tables.append(
                (
                    f"{KINDS[kind].title.capitalize()}: {shown}",
                    ["structure_id", "split", "reason"],
                    rows,
                )
            )
    return tables
