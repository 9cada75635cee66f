"""`evenfield finetune MODEL DATA OUT`, and `evenfield finetune curve`: few structures, minutes, never worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.command_line import (
    DefaultCommandGroup,
    FolderHub,
    ModelReference,
    Overrides,
    Recipe,
    settings_option,
    share_of_work,
)


if TYPE_CHECKING:
    from .run import FineTuned
    from .safety.forgetting import Forgetting


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Few structures, minutes, never worse than before: evenfield finetune MODEL DATA OUT, or a command.",
)


@app.command()
def run(
    model: ModelReference,
    data: Annotated[
        str, typer.Argument(help="a file with labels, or the folder of a converted data set")
    ],
    out: Annotated[Path, typer.Argument(help="folder of the fine-tuned model")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    folder_hub: FolderHub = None,
    licence: Annotated[
        str | None, typer.Option(help="licence of the new weights; default the base model's")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="converted pretraining data, for the forgetting report")
    ] = None,
    show_settings: Annotated[bool, settings_option("finetune.config:FineTuneConfig")] = False,
) -> None:
    """Fine-tune a model to few structures; prints step 0, what was kept, and what was forgotten.

    `run` need not be said. Labels of a file that ASE does not know by itself: source.columns.energy=...

    Example: evenfield finetune runs/uniform/model runs/titanium runs/titanium-model num_structures=16 strategy=full
    """
    from ..core.settings import load_settings
    from ..model_zoo.hub.load import load, resolve
    from .config import FineTuneConfig
    from .run import finetune
    from .safety.forgetting import forgetting_report, probe_of
    from .save import save_finetuned

    loaded = load(model, folder_hub)
    config = load_settings(FineTuneConfig, recipe, overrides)
    result = finetune(loaded, data, config, work=out.with_name(f"{out.name}-data"), quiet=False)
    structures = probe_of(loaded, probe, resolve(model, folder_hub)[0])
    forgetting = forgetting_report(loaded.potential, result.potential, structures)
    _print_result(result, forgetting)
    typer.echo(f"model: {save_finetuned(result, loaded, out, licence, forgetting)}")


@app.command()
def curve(
    model: ModelReference,
    data: Annotated[
        Path, typer.Argument(help="folder of a converted data set of one level of theory")
    ],
    out: Annotated[
        Path, typer.Argument(help="file to write, fewshot.json; the plot stands beside it")
    ],
    overrides: Overrides = None,
    recipe: Recipe = None,
    folder_hub: FolderHub = None,
    task: Annotated[
        str | None, typer.Option(help="K/N: only every N-th cell from the K-th, for job arrays")
    ] = None,
    show_settings: Annotated[bool, settings_option("finetune.few_shot.curve:CurveConfig")] = False,
) -> None:
    """Errors against the number of structures: pretrained, step 0, strategies, from scratch. Resumable.

    Example: evenfield finetune curve runs/uniform/model runs/titanium runs/fewshot.json sizes=[4,16] seeds=[0]
    strategies=[refit,full]
    """
    from ..core.figures.style import figure_png
    from ..core.files import write_atomically
    from ..core.settings import load_settings
    from ..model_zoo.hub.load import load
    from .few_shot.curve import CurveConfig, few_shot_curve
    from .few_shot.curve_plot import draw_few_shot_curve
    from .few_shot.results import FewShotCurve

    settings = load_settings(CurveConfig, recipe, overrides)
    share = share_of_work(task)
    content = few_shot_curve(
        load(model, folder_hub), data, out, settings, task=share, say=typer.echo
    )
    if share is not None:
        typer.echo(f"task {task} is done; when all are, run the same command without --task")
        return
    curve = FewShotCurve.model_validate(content)
    _print_table("force MAE (eV/A)", *curve.table("force_mae"))
    _print_table("energy MAE (eV/atom)", *curve.table("energy_mae_per_atom"))
    for name in settings.strategies:
        ratio = curve.times_fewer(name)
        if ratio is not None:
            typer.echo(
                f"{name}: {ratio:.2g} times fewer structures than from scratch for the same force error"
            )
    picture = out.with_suffix(".png")
    write_atomically(picture, figure_png(draw_few_shot_curve(curve), dots_per_inch=130))
    typer.echo(f"curve: {out}\nplot: {picture}")


@app.command()
def attach(
    model: Annotated[Path, typer.Argument(help="folder of a pretrained model")],
    data: Annotated[Path, typer.Argument(help="the converted data set that it was trained on")],
) -> None:
    """Put a probe set and the readout's posterior beside a pretrained model; its weights stay as they are.

    Example: evenfield finetune attach runs/mine/model runs/data
    """
    from .safety.trust import attach_trust

    typer.echo(f"{model}: now with {', '.join(attach_trust(model, data))}")


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _print_result(result: FineTuned, forgetting: Forgetting) -> None:
    header = ["", "energy MAE (meV/atom)", "force MAE (eV/A)"]
    rows = [
        [row.name, _number(row.energy_mae_per_atom, 1, 1000), _number(row.force_mae, 4)]
        for row in result.table
    ]
    _print_table(
        f"{result.level_of_theory}: {len(result.target.train)} structures to learn from",
        header,
        rows,
    )
    judged = result.final.errors
    rows = []
    for name, stage in result.stages.items():
        undone = " (undone: worse on held-out structures)" if stage.kept == 0.0 else ""
        energy = _number(stage.errors.energy_mae_per_atom, 1, 1000)
        force = _number(stage.errors.force_mae, 4)
        rows.append([name + undone, energy, force, f"{stage.seconds:.1f}"])
    title = f"errors on the {judged.split} split, {judged.num_structures} structures"
    _print_table(title, [*header, "seconds"], rows)
    rows = [
        [f"{row.kind} ({row.num_structures})", *(_number(e, 1, 1000) for e in (row.energy_before, row.energy_after)),
         *(_number(f, 4) for f in (row.force_before, row.force_after))]
        for row in forgetting.rows
    ]  # fmt: skip
    header = ["probe", "energy before (meV/atom)", "after", "force before (eV/A)", "after"]
    _print_table("what was forgotten", header, rows)
    _print_notes(result)


def _print_notes(result: FineTuned) -> None:
    reference, refit = result.reference, result.refit
    if reference.another_zero:
        typer.echo(
            "the energies have another zero than the model's: E0 of all elements was fitted anew"
        )
    if reference.undetermined:
        names = ", ".join(reference.undetermined)
        typer.echo(f"E0 not determined by these structures, kept near the pretrained: {names}")
    if refit.duplicates:
        typer.echo(
            f"{refit.duplicates} structures are copies of others and were left out together with them"
        )
    noise = ", ".join(f"{kind} {value:.3g}" for kind, value in refit.noise.items())
    typer.echo(
        f"{refit.rows} labels; estimated noise of a typical structure (eV/atom, eV/A, eV/A^3): {noise}"
    )
