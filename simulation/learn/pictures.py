"""Pictures of the labelled structures about which the model before was most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms
from ase.data.colors import jmol_colors
from ase.visualize.plot import plot_atoms
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ...core.figures.style import COLOURS, STYLE, figure_png
from ...core.pages.page import Block, Picture, Text


# Structures that are drawn; more would show nothing new.
MOST_DRAWN = 12
COLUMNS = 4
# Seen a little from the side: along an axis, the atoms of a crystal would hide each other.
VIEW = "-80x,-15y,5z"
# colour of the worst atom; no element is drawn in it
MARK = COLOURS[3]


@dataclass(frozen=True)
class Surprise:
    """A labelled structure, and the force in it about which the model before was most wrong."""

    name: str
    atoms: Atoms
    error: float
    """eV/A, length of the difference."""
    atom: int
    """Index of the atom."""


def pictures(surprises: Sequence[Surprise]) -> list[Block]:
    """The structures with the largest errors before they were learned, the largest first."""
    if not surprises:
        return [Text("No label has been judged yet: the first ones have nothing before them.")]
    chosen = sorted(surprises, key=lambda one: (-one.error, one.name))[:MOST_DRAWN]
    rows = -(-len(chosen) // COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.4 * COLUMNS, 2.8 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, one in zip(grid.flat, chosen, strict=False):
            atoms = one.atoms.copy()
            # atoms that have left the cell through one side are drawn at the other
            atoms.wrap()
            colours = jmol_colors[atoms.numbers]
            colours[one.atom] = to_rgb(MARK)
            has_cell = atoms.cell.rank == 3
            plot_atoms(
                atoms,
                axes,
                rotation=VIEW,
                # smaller than they are, to see those behind
                radii=0.7,
                colors=colours,
                show_unit_cell=2 if has_cell else 0,
            )
            place = f"{one.error:.2f} eV/A on atom {one.atom} ({atoms.symbols[one.atom]})"
            axes.set_title(f"{one.name}  {short_formula(atoms)}\n{place}", fontsize=9)
        png = figure_png(figure, dots_per_inch=100)
    worst = chosen[0]
    return [
        Text(
            f"The {len(chosen)} labelled structures with the largest errors of a force before they "
            "were learned. Each has the name of its label, the error, and the atom that has it, in "
            "pink."
        ),
        Picture(
            f"{len(chosen)} structures; the largest error has {worst.name} "
            f"({short_formula(worst.atoms)}), {worst.error:.2f} eV/A on atom {worst.atom}",
            png,
        ),
    ]


def short_formula(atoms: Atoms) -> str:
    """The formula, cut where it would not fit below a picture."""
    formula: str = atoms.get_chemical_formula()
    return formula if len(formula) <= 16 else f"{formula[:13]}..."
