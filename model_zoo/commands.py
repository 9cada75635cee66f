"""`evenfield hub ...`: publish a model and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(no_args_is_help=True, help="Published models: safetensors, JSON and a card; no pickles.")


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="model folder")],
    repo: Annotated[str, typer.Argument(help="owner/name to publish as")],
    folder_hub: Annotated[Path, typer.Option("--folder-hub", help="root of the folder hub")],
) -> None:
    """Publish a model folder to a plain folder hub; prints the pinned reference.

    Example: evenfield hub publish runs/uniform/model me/uniform --folder-hub runs/hub
    """
    from .publishing import publish as run

    typer.echo(run(model, repo, folder_hub))


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="model folder or owner/name[@revision]")],
    folder_hub: Annotated[Path | None, typer.Option("--folder-hub", help="root of the folder hub")] = None,
) -> None:
    """Check a model's files and print its card."""
    from rich.console import Console
    from rich.markdown import Markdown

    from .hub import resolve
    from .package import load_model

    folder, pinned = resolve(reference, folder_hub)
    load_model(folder)
    card = (folder / "README.md").read_text().split("---\n", 2)[-1]
    console = Console()
    console.print(Markdown(card))
    console.print(f"whole and verified: {pinned}")


@app.command()
def elements(
    reference: Annotated[str, typer.Argument(help="model folder or owner/name[@revision]")],
    folder_hub: Annotated[Path | None, typer.Option("--folder-hub", help="root of the folder hub")] = None,
    csv: Annotated[Path | None, typer.Option(help="file to write the vectors of all 118 elements to")] = None,
) -> None:
    """Which elements a model finds alike: the nearest neighbours of each trained element, by its learned vector.

    Example: evenfield hub elements runs/uniform/model --csv vectors.csv
    """
    import numpy as np
    from ase.data import chemical_symbols
    from rich.console import Console
    from rich.table import Table

    from .elements import element_vectors, nearest_elements
    from .hub import load

    model = load(reference, folder_hub)
    symbols = sorted({s for level in model.record.elements.values() for s in level}, key=chemical_symbols.index)
    table = Table("element", "training structures", "nearest by cosine similarity", title=model.reference)
    for symbol, near in nearest_elements(model.potential, symbols).items():
        names = "  ".join(f"{other} {similarity:.2f}" for other, similarity in near)
        table.add_row(symbol, str(model.record.train_counts.get(symbol, 0)), names)
    Console().print(table)
    if csv is not None:
        vectors = element_vectors(model.potential)[1:]
        rows = np.column_stack([np.array(chemical_symbols[1:119])[:, None], vectors.astype("U24")])
        np.savetxt(csv, rows, fmt="%s", delimiter=",")
        typer.echo(f"vectors: {csv}")
