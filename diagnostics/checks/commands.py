"""`evenfield check`: what can be asked of a model without any labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from ...model_zoo.hub.load import LoadedModel


app = typer.Typer(
    no_args_is_help=True,
    help="Checks of a model that need no labels: symmetry, phases, reach, cost.",
)

Model = Annotated[str, typer.Argument(help="model folder, zoo name or owner/name[@revision]")]
Level = Annotated[
    str | None, typer.Option("--level-of-theory", help="head of the model; default its first")
]
Hub = Annotated[Path | None, typer.Option("--folder-hub", help="root of the folder hub")]


@app.command()
def symmetry(model: Model, level_of_theory: Level = None, folder_hub: Hub = None) -> None:
    """Turned, moved, renumbered, told by other cells: does it predict the same, and are forces slopes? Exit 1 if not.

    Example: evenfield check symmetry evenfield-s
    """
    from .symmetry import audit

    loaded, symbols = _loaded(model, level_of_theory, folder_hub)
    failed = 0
    for dtype in ("float32", "float64"):
        calculator = _calculator(loaded, level_of_theory, dtype)
        for finding in audit(calculator, symbols, single=dtype == "float32"):
            word = "ok    " if finding.passed else "FAILED"
            failed += not finding.passed
            typer.echo(
                f"{dtype} {word} {finding.error:.1e} of {finding.tolerance:.0e} allowed: {finding.name}"
            )
    if failed:
        raise typer.Exit(1)


@app.command()
def phases(
    model: Model,
    element: Annotated[str, typer.Argument(help="symbol of an element that the model knows")],
    level_of_theory: Level = None,
    folder_hub: Hub = None,
) -> None:
    """Which crystal structure of an element is lowest: fcc, hcp, bcc, sc, beta-tin, diamond.

    Example: evenfield check phases evenfield-s Cu --level-of-theory EMT
    """
    from .phase_order import rank_prototypes

    loaded, symbols = _loaded(model, level_of_theory, folder_hub)
    if element not in symbols:
        raise ValueError(
            f"{element}: the model was not trained on it; it knows {' '.join(symbols)}"
        )
    ranking = rank_prototypes(_calculator(loaded, level_of_theory, "float64"), element)
    for phase in ranking:
        remark = "   no minimum in the volumes looked at" if phase.at_edge else ""
        above = 1000 * (phase.energy - ranking[0].energy)
        typer.echo(
            f"{phase.name:8} {above:8.1f} meV/atom above the lowest, {phase.volume:6.2f} A^3/atom{remark}"
        )


@app.command()
def reach(
    model: Model,
    structure: Annotated[Path, typer.Argument(help="structure in any file that ASE reads")],
    index: Annotated[int, typer.Option(help="the atom that moves, counted from 0")] = 0,
    level_of_theory: Level = None,
    folder_hub: Hub = None,
) -> None:
    """How far the model looks: what the energies of other atoms feel when one of a structure moves.

    A crystal is repeated until no atom can feel two images of the one that moves.

    Example: evenfield check reach evenfield-s copper.cif --level-of-theory EMT
    """
    from ...data_pipelines.sources.ase_files import read_one
    from .receptive_field import measure_reach

    atoms = read_one(structure)
    if not 0 <= index < len(atoms) or len(atoms) < 2:
        raise ValueError(
            f"--index {index}: {structure} has {len(atoms)} atoms; one that moves and others are needed"
        )
    loaded, _ = _loaded(model, level_of_theory, folder_hub)
    config = loaded.potential.config
    atoms = _thickened(atoms, 2 * config.num_layers * config.cutoff)
    found = measure_reach(_calculator(loaded, level_of_theory, "float64"), atoms, index)
    for end, share in found.shells(config.cutoff):
        typer.echo(
            f"{end - config.cutoff:5.1f} to {end:5.1f} A: {100 * share:9.5f} % of the squared response"
        )
    typer.echo(
        f"99 % within {found.effective:.1f} A, none beyond {found.largest:.1f} A; "
        f"{config.num_layers} layers with a cutoff of {config.cutoff:g} A cannot see beyond "
        f"{config.num_layers * config.cutoff:g} A"
    )


@app.command()
def scaling(
    model: Model,
    structure: Annotated[Path, typer.Argument(help="periodic structure that is repeated")],
    doublings: Annotated[
        int, typer.Option(min=2, help="of the structure, along one axis after the other")
    ] = 4,
    xtb: Annotated[
        bool, typer.Option("--xtb", help="clusters, beside GFN1-xTB (extra `demo`)")
    ] = False,
    level_of_theory: Level = None,
    folder_hub: Hub = None,
) -> None:
    """How the time of a call grows with the number of atoms, in processor seconds; with --xtb where it breaks even.

    One thread of torch; calls as in dynamics, where neighbours are searched again only now and then.

    Example: evenfield check scaling evenfield-s copper.cif --doublings 8 --level-of-theory EMT
    """
    import torch
    from ase.calculators.calculator import CalculatorError

    from ...data_pipelines.demo.oracles import GFN1_LEVEL
    from ...data_pipelines.sources.ase_files import read_one
    from .cost_scaling import break_even, fit_cost, time_calls

    atoms = read_one(structure)
    if atoms.cell.rank < 3:
        raise ValueError(
            f"{structure} has no cell of three vectors: give a crystal, which can be repeated"
        )
    cells = [
        atoms * [2 ** ((n + 2 - axis) // 3) for axis in range(3)] for n in range(doublings + 1)
    ]
    if xtb:
        for cell in cells:
            cell.pbc = False  # tblite labels clusters only
    loaded, _ = _loaded(model, level_of_theory, folder_hub)
    potentials = {"this model": _calculator(loaded, level_of_theory, None)}
    if xtb:
        potentials[GFN1_LEVEL] = _tight_binding()
    torch.set_num_threads(1)
    sizes, laws = [len(cell) for cell in cells], {}
    for name, calculator in potentials.items():
        try:
            seconds = time_calls(calculator, cells)
        except CalculatorError as error:
            raise ValueError(
                f"{name} fails on {structure}: {error}: give a crystal of closed-shell molecules"
            ) from None
        laws[name] = law = fit_cost(sizes, seconds)
        for size, spent in zip(sizes, seconds, strict=True):
            typer.echo(
                f"{name}: {size:6} atoms {1e3 * spent:10.1f} ms, {1e6 * spent / size:8.1f} us an atom"
            )
        typer.echo(
            f"{name}: {1e3 * law.fixed:.1f} ms a call + {1e6 * law.factor:.1f} us x atoms^{law.exponent:.2f}"
        )
    if xtb:
        atoms_needed = break_even(laws["this model"], laws[GFN1_LEVEL])
        verdict = "never" if atoms_needed is None else f"from {atoms_needed:.0f} atoms on"
        if atoms_needed and atoms_needed > sizes[-1]:
            verdict += f", more than were measured: --doublings above {doublings} would show it"
        typer.echo(f"cheaper than {GFN1_LEVEL}: {verdict}")


def _loaded(
    model: str, level_of_theory: str | None, folder_hub: Path | None
) -> tuple[LoadedModel, list[str]]:
    """The model and the elements that the head was trained on."""
    from ...model_zoo.engines.calculator import checked_level
    from ...model_zoo.hub.load import load

    loaded = load(model, folder_hub)
    return loaded, loaded.record.elements[checked_level(loaded.potential, level_of_theory)]


def _thickened(atoms: Atoms, thickness: float) -> Atoms:
    """Repeated along what is periodic to at least this thickness in A; the first copy keeps its indices."""
    from ...data_pipelines.neighbours import cell_heights

    heights = cell_heights(atoms.cell.array)
    return atoms * [
        math.ceil(thickness / h) if p and h > 0 else 1
        for p, h in zip(atoms.pbc, heights, strict=True)
    ]


def _tight_binding() -> Calculator:
    from ...data_pipelines.demo.oracles import GFN1_LEVEL, oracle_calculator

    try:
        return oracle_calculator(GFN1_LEVEL)
    except ImportError as error:
        raise ValueError(str(error)) from None


def _calculator(loaded: LoadedModel, level_of_theory: str | None, dtype: str | None) -> Calculator:
    return loaded.calculator(level_of_theory=level_of_theory, dtype=dtype)
