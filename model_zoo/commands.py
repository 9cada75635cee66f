"""`evenfield hub ...`: publish a model, fetch one, look at one; `evenfield zoo ...`: the named ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.command_line import FolderHub, ModelReference, settings_option


app = typer.Typer(
    no_args_is_help=True, help="Published models: safetensors, JSON and a card; no pickles."
)
zoo_app = typer.Typer(
    no_args_is_help=True, help="Models with a name of their own, made by the project's recipes."
)


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="model folder")],
    repo: Annotated[str, typer.Argument(help="owner/name to publish as")],
    folder_hub: FolderHub = None,
    private: Annotated[
        bool, typer.Option("--private", help="on the Hugging Face hub, for you and yours only")
    ] = False,
    tag: Annotated[
        str | None, typer.Option(help="name for this revision; a tag never moves")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would go up; send nothing")
    ] = False,
) -> None:
    """Publish a model folder in one commit and print the pinned reference.

    Without --folder-hub it goes to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN.

    Examples:
    evenfield hub publish runs/uniform/model me/uniform --dry-run
    evenfield hub publish runs/uniform/model me/uniform --folder-hub runs/hub --tag v1
    """
    from .hub.publish import plan_publication
    from .hub.publish import publish as run

    if dry_run:
        _print_plan(plan_publication(model, repo))
    else:
        typer.echo(run(model, repo, folder_hub, private=private, tag=tag))


@app.command()
def pull(
    reference: ModelReference,
    folder_hub: FolderHub = None,
    force: Annotated[
        bool, typer.Option("--force", help="fetch again what the cache holds")
    ] = False,
) -> None:
    """Fetch a model into the cache, verify every hash, print where it lies and the pinned reference.

    What an earlier try has brought is not fetched again. Example: evenfield hub pull me/uniform@v1
    """
    from .hub.load import resolve
    from .package.folder import open_package

    folder, pinned = resolve(reference, folder_hub, force=force)
    package = open_package(folder)
    typer.echo(
        f"{folder}\nwhole and verified: {pinned or f'{package.record.name}@{package.revision}'}"
    )


@app.command()
def show(reference: ModelReference, folder_hub: FolderHub = None) -> None:
    """Check a model's files and print its card."""
    show_card(reference, folder_hub)


@app.command()
def describe(
    model: Annotated[Path, typer.Argument(help="model folder")],
    facts: Annotated[
        list[str],
        typer.Argument(help="key=value: name, licence, description, citation, level_details"),
    ],
    show_settings: Annotated[bool, settings_option("model_zoo.package.folder:Description")] = False,
) -> None:
    """Put facts into a model's record and write its card again; the weights stay as they are.

    Example: evenfield hub describe runs/uniform/model licence=Apache-2.0 level_details.EMT="effective medium, ASE"
    """
    from ..core.settings import load_settings
    from .package.folder import Description
    from .package.folder import describe as run

    run(model, load_settings(Description, None, facts))
    typer.echo(f"{model}: described; see {model / 'README.md'}")


@app.command("export-metatomic")
def metatomic(
    reference: ModelReference,
    out: Annotated[Path, typer.Argument(help="file to write, ending in .pt")],
    level_of_theory: Annotated[
        str | None, typer.Option(help="the model's first when not given")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float64, or float32: faster, total energies to seven digits")
    ] = "float64",
    folder_hub: FolderHub = None,
) -> None:
    """Write a model as one file for engines that speak metatomic: LAMMPS, i-PI and others (extra `metatomic`).

    Example: evenfield hub export-metatomic evenfield-s runs/emt.pt --level-of-theory EMT
    """
    from .engines.metatomic_export import export_metatomic as run
    from .hub.load import load

    typer.echo(
        f"{run(load(reference, folder_hub), out, level_of_theory=level_of_theory, dtype=dtype)}: written"
    )


@zoo_app.command("list")
def list_zoo() -> None:
    """Named models: what they are, and whether they are on this machine."""
    from rich.console import Console
    from rich.table import Table

    from .package.folder import open_package
    from .zoo import named_models as zoo

    console = Console(soft_wrap=True, highlight=False)
    table = Table("name", "elements", "parameters", "force MAE", "revision")
    for name in zoo.names():
        folder = zoo.folder_of(name)
        if folder is None:
            table.add_row(name, "", "", "", "not here")
            continue
        package = open_package(folder)
        symbols = {symbol for level in package.record.elements.values() for symbol in level}
        parameters = sum(p.numel() for p in package.potential.parameters())
        mae = package.evaluation.get("force_mae")
        figures = [str(len(symbols)), f"{parameters:,}", "" if mae is None else f"{mae:.3f} eV/A"]
        table.add_row(name, *figures, package.revision)
    console.print(table)
    for name in zoo.names():
        make = "" if zoo.folder_of(name) else f"; make it with: evenfield zoo build {name}"
        console.print(f"{name}: {zoo.ZOO[name].about}{make}", markup=False)


@zoo_app.command("show")
def show_zoo(name: Annotated[str, typer.Argument(help="name of the model")]) -> None:
    """Check a named model's files and print its card."""
    show_card(name, None)


def show_card(reference: str, folder_hub: str | None) -> None:
    """Print the card of a model, once all its files are verified."""
    from rich.console import Console
    from rich.markdown import Markdown

    from .hub.load import resolve
    from .package.folder import open_package

    folder, pinned = resolve(reference, folder_hub)
    package = open_package(folder)
    console = Console()
    console.print(Markdown((folder / "README.md").read_text().split("---\n", 2)[-1]))
    console.print(f"whole and verified: {pinned or f'{package.record.name}@{package.revision}'}")


def _print_plan(plan: Any) -> None:
    """A dry run: files, what is missing, what must not be seen."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table("file", "bytes", title=f"would go up as {plan.repo}, revision {plan.revision}")
    for name, size in plan.files.items():
        table.add_row(name, f"{size:,}")
    console.print(table)
    for heading, lines in {
        "refused for lack of": plan.lacks,
        "refused because it shows": plan.leaks,
        "the card would be better with": plan.advice,
    }.items():
        for line in lines:
            console.print(f"{heading}: {line}", markup=False)
    console.print(
        "nothing was sent; " + ("it would be refused" if plan.refusal else "it would be accepted")
    )


@app.command()
def elements(
    reference: ModelReference,
    folder_hub: FolderHub = None,
    csv: Annotated[
        Path | None, typer.Option(help="file to write the vectors of all 118 elements to")
    ] = None,
) -> None:
    """Which elements a model finds alike: the nearest neighbours of each trained element, by its learned vector.

    Example: evenfield hub elements runs/uniform/model --csv vectors.csv
    """
    import numpy as np
    from ase.data import chemical_symbols
    from rich.console import Console
    from rich.table import Table

    from .element_table import element_vectors, nearest_elements
    from .hub.load import load

    model = load(reference, folder_hub)
    symbols = sorted(
        {s for level in model.record.elements.values() for s in level}, key=chemical_symbols.index
    )
    table = Table(
        "element", "training structures", "nearest by cosine similarity", title=model.reference
    )
    for symbol, near in nearest_elements(model.potential, symbols).items():
        names = "  ".join(f"{other} {similarity:.2f}" for other, similarity in near)
        table.add_row(symbol, str(model.record.train_counts.get(symbol, 0)), names)
    Console().print(table)
    if csv is not None:
        vectors = element_vectors(model.potential)[1:]
        rows = np.column_stack([np.array(chemical_symbols[1:119])[:, None], vectors.astype("U24")])
        np.savetxt(csv, rows, fmt="%s", delimiter=",")
        typer.echo(f"vectors: {csv}")
