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
    from .hub import publish as run

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
