"""`evenfield hub ...`: publish, fetch and show models. `evenfield zoo ...`: the named models.

The functions import what they need when they run, because `evenfield --help` must not wait for
torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.command_line import FolderHub, LevelOfTheory, ModelReference, Overwrite, settings_option
from ..core.terminal import printable, say


if TYPE_CHECKING:
    from .hub.publish import Publication


app = typer.Typer(
    no_args_is_help=True, help="Published models: safetensors, JSON and a card; no pickles."
)
zoo_app = typer.Typer(
    no_args_is_help=True, help="Models with a name of their own, made by the project's recipes."
)


# --- evenfield hub


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="model folder")],
    repo: Annotated[str, typer.Argument(help="owner/name to publish as")],
    folder_hub: FolderHub = None,
    private: Annotated[
        bool, typer.Option("--private", help="on the Hugging Face hub: for you and your group only")
    ] = False,
    tag: Annotated[
        str | None, typer.Option(help="name for this revision; a tag never moves")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be published; send nothing")
    ] = False,
    allow_failed: Annotated[
        bool,
        typer.Option(
            "--allow-failed", help="publish a model that failed physical checks, or has none"
        ),
    ] = False,
) -> None:
    """Publish a model folder in one commit and print the pinned reference.

    Without --folder-hub, the model goes to the Hugging Face hub, with the token of `hf auth login`
    or HF_TOKEN. The model must have passed `evenfield check sanity MODEL --attach`.

    Examples:
    evenfield hub publish runs/uniform/model me/uniform --dry-run
    evenfield hub publish runs/uniform/model me/uniform --folder-hub runs/hub --tag v1
    """
    from ..core.addresses import local_path
    from .hub.publish import BATTERY, lacks_battery, plan_publication
    from .hub.publish import publish as run
    from .package.folder import read_model_folder

    if dry_run:
        _print_plan(plan_publication(model, repo, tag=tag, allow_failed=allow_failed))
        return
    pinned = run(model, repo, folder_hub, private=private, tag=tag, allow_failed=allow_failed)
    if lacks_battery(read_model_folder(local_path(model))):
        say(f"the card would be better with {BATTERY}", err=True)
    say(pinned)


@app.command()
def pull(
    reference: ModelReference,
    folder_hub: FolderHub = None,
    force: Annotated[
        bool, typer.Option("--force", help="download again what the cache holds")
    ] = False,
) -> None:
    """Fetch a model, verify every hash, print its folder and pinned reference.

    The model is kept in the cache. Files from an earlier, interrupted attempt are not fetched
    again.

    Example: evenfield hub pull me/uniform@v1
    """
    from .hub.load import resolve
    from .package.folder import read_model_folder

    folder, pinned = resolve(reference, folder_hub, force=force)
    # reading verifies every file, including those that were already in the cache
    model = read_model_folder(folder)
    name = pinned or f"{model.record.name}@{model.revision}"
    # the folder is on a separate line, for scripts
    say(folder)
    say(f"complete and verified: {name}")


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
    show_settings: Annotated[bool, settings_option("model_zoo.package.record:Description")] = False,
) -> None:
    """Add facts to a model's record and write its card again.

    The weights do not change.

    Example: evenfield hub describe runs/uniform/model licence=Apache-2.0
    level_details.EMT="effective medium, ASE"
    """
    from ..core.settings import load_settings
    from .package.folder import describe as run
    from .package.record import Description

    run(model, load_settings(Description, None, facts))
    say(f"{model}: described; see {model / 'README.md'}")


@app.command("export-metatomic")
def metatomic(
    reference: ModelReference,
    out: Annotated[Path, typer.Argument(help="file to write, ending in .pt")],
    level_of_theory: LevelOfTheory = None,
    dtype: Annotated[
        str, typer.Option(help="float64; or float32: faster, total energies to seven digits")
    ] = "float64",
    heads: Annotated[
        str | None,
        typer.Option(help="heads of other properties: all, or names with commas between them"),
    ] = None,
    folder_hub: FolderHub = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as one file for LAMMPS, i-PI and others that read metatomic.

    This needs the extra `metatomic`.

    Examples:
    evenfield hub export-metatomic evenfield-s runs/emt.pt --level-of-theory EMT
    evenfield hub export-metatomic heads runs/heads.pt --heads dipole,gap
    """
    from ..core.destination import check_destination
    from .engines.metatomic_export import METATOMIC_FILE, export_metatomic
    from .hub.load import load

    check_destination(out, overwrite=overwrite, file_kind=METATOMIC_FILE, inputs=[reference])

    model = load(reference, folder_hub)
    chosen = False if heads is None else heads == "all" or heads.split(",")
    path = export_metatomic(model, out, level_of_theory=level_of_theory, dtype=dtype, heads=chosen)
    say(f"{path}: written")


@app.command()
def elements(
    reference: ModelReference,
    folder_hub: FolderHub = None,
    csv: Annotated[
        Path | None, typer.Option(help="file to write the vectors of all 118 elements to")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the file of --csv")
    ] = False,
) -> None:
    """List the most similar elements of each trained element.

    Similarity is measured between the element vectors that the model has learned.

    Example: evenfield hub elements runs/uniform/model --csv vectors.csv
    """
    from rich.table import Table

    from ..core.destination import check_destination
    from ..core.rich_console import Console
    from .element_table import VECTORS_FILE, nearest_elements, write_vectors
    from .hub.load import load

    if csv is not None:
        check_destination(
            csv,
            overwrite=overwrite,
            file_kind=VECTORS_FILE,
            inputs=[reference],
            elsewhere="name another file for --csv",
        )
    model = load(reference, folder_hub)
    table = Table(
        "element", "training structures", "nearest by cosine similarity", title=model.reference
    )
    # only trained elements, because the vectors of others have not moved
    nearest = nearest_elements(model.potential, model.record.symbols)
    for symbol, neighbours in nearest.items():
        shown = "  ".join(f"{other} {similarity:.2f}" for other, similarity in neighbours)
        count = model.record.train_counts.get(symbol, 0)
        table.add_row(symbol, str(count), shown)
    Console().print(table)

    if csv is not None:
        write_vectors(csv, model.potential)
        say(f"vectors: {csv}")


# --- evenfield zoo


@zoo_app.command("list")
def list_zoo() -> None:
    """List the named models, and whether they are on this machine."""
    from rich.table import Table

    from ..core.rich_console import Console
    from .package.folder import read_model_folder
    from .zoo import named_models as zoo

    table = Table("name", "elements", "parameters", "force MAE", "revision")
    remarks = []
    for name in zoo.names():
        about = zoo.ZOO[name].about
        folder = zoo.folder_of(name)
        if folder is None:
            table.add_row(name, "", "", "", "not here")
            # below the table, because a command wrapped in a cell cannot be copied
            remarks.append(f"{name}: {about}; build it with: evenfield zoo build {name}")
            continue

        model = read_model_folder(folder)
        num_parameters = sum(parameter.numel() for parameter in model.potential.parameters())
        force_mae = model.evaluation.force_mae if model.evaluation else None
        error = "" if force_mae is None else f"{force_mae:.3f} eV/A"
        num_elements = str(len(model.record.symbols))
        table.add_row(name, num_elements, f"{num_parameters:,}", error, model.revision)
        remarks.append(f"{name}: {about}")

    console = Console(soft_wrap=True)
    console.print(table)
    for remark in remarks:
        console.print(remark)


@zoo_app.command("show")
def show_zoo(name: Annotated[str, typer.Argument(help="name of the model")]) -> None:
    """Check a named model's files and print its card."""
    show_card(name, None)


# --- shared


def show_card(reference: str, folder_hub: str | None) -> None:
    """Print the card of a model after verifying all its files."""
    from rich.markdown import Markdown

    from ..core.files import file_errors
    from ..core.rich_console import Console
    from .hub.load import resolve
    from .package.folder import read_model_folder

    folder, pinned = resolve(reference, folder_hub)
    model = read_model_folder(folder)
    with file_errors(folder / "README.md"):
        card = (folder / "README.md").read_text()
    # the metadata between two lines of dashes are for the hub, not for readers
    page = printable(card.split("---\n", 2)[-1])

    name = pinned or f"{model.record.name}@{model.revision}"

    console = Console()
    console.print(Markdown(page))
    console.print(f"complete and verified: {name}")


def _print_plan(plan: Publication) -> None:
    """Print the findings of a dry run."""
    from rich.table import Table

    from ..core.rich_console import Console

    console = Console(soft_wrap=True)
    table = Table(
        "file", "bytes", title=f"would be published as {plan.repo}, revision {plan.revision}"
    )
    for name, size in plan.files.items():
        table.add_row(name, f"{size:,}")
    console.print(table)

    findings = {
        "refused, its record lacks": plan.lacks,
        "refused, it shows": plan.leaks,
        "published all the same" if plan.allow_failed else "refused": plan.unsound,
        "the card would be better with": plan.advice,
    }
    for heading, lines in findings.items():
        for line in lines:
            # printed without markup, because a line may quote text with brackets from the model
            console.print(f"{heading}: {line}")
    verdict = "refused" if plan.refused else "accepted"
    console.print(f"nothing was sent; the model would be {verdict}")
