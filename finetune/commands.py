"""`evenfield finetune ...`: refit a readout to few structures; few-shot curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from .fewshot import FineTuned

app = typer.Typer(no_args_is_help=True, help="Few structures, minutes, never worse than before.")

Model = Annotated[str, typer.Argument(help="model folder or owner/name[@revision]")]
Data = Annotated[Path, typer.Argument(help="folder of a converted data set of one level of theory")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key=value, key.sub=value")]
Hub = Annotated[Path | None, typer.Option("--folder-hub", help="folder hub to look models up in")]


@app.command()
def refit(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Argument(help="folder of the fine-tuned model")],
    overrides: Overrides = None,
    folder_hub: Hub = None,
    licence: Annotated[str | None, typer.Option(help="licence of the new weights; default the base model's")] = None,
) -> None:
    """Refit E0 and the readout in closed form; prints errors before, at step 0 and after.

    Example: evenfield finetune refit runs/uniform/model runs/titanium runs/titanium-model num_structures=16
    """
    from ..data_pipelines.settings import load_settings
    from ..model_zoo.hub import load
    from .fewshot import FineTuneConfig, finetune, save_finetuned

    loaded = load(model, folder_hub)
    result = finetune(loaded, data, load_settings(FineTuneConfig, None, overrides))
    _print_steps(result)
    typer.echo(f"model: {save_finetuned(result, loaded, data, out, licence)}")


@app.command()
def curve(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Argument(help="file to write, fewshot.json")],
    overrides: Overrides = None,
    folder_hub: Hub = None,
) -> None:
    """Errors against the number of structures: pretrained, step 0, refit, from scratch. Resumable.

    Example: evenfield finetune curve runs/uniform/model runs/titanium runs/fewshot.json sizes=[4,16] seeds=[0]
    """
    from ..data_pipelines.settings import load_settings
    from ..model_zoo.hub import load
    from .fewshot import FewShotConfig, few_shot_curve

    few_shot_curve(load(model, folder_hub), data, out, load_settings(FewShotConfig, None, overrides), say=typer.echo)
    typer.echo(f"curve: {out}")


def _print_steps(result: FineTuned) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "energy MAE (meV/atom)", "force MAE (eV/A)", "seconds")
    table.title = f"{result.level_of_theory}: {len(result.structures)} structures, errors on the test split"
    names = {"pretrained": "pretrained", "step0": "step 0: E0 refitted", "refit": "after: readout refitted"}
    for key, name in names.items():
        row = result.evaluations[key]
        figures = (f"{1000 * row['energy_mae_per_atom']:.1f}", f"{row['force_mae']:.4f}")
        table.add_row(name, *figures, f"{result.seconds[key]:.1f}")
    console = Console()
    console.print(table)
    undetermined = result.reference.undetermined
    if undetermined:
        console.print(f"E0 not determined by these structures, kept near the pretrained: {', '.join(undetermined)}")
    console.print(
        f"{result.refit.rows} labels; cross-validated error {result.refit.error_before:.3g} before, "
        f"{result.refit.error_after:.3g} after the refit (in units of the assumed noise)"
    )
