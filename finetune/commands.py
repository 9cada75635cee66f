"""The commands `evenfield finetune [run]`, `... curve`, `... attach` and `... head`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..core.command_line import (
    CommandLineError,
    DefaultCommandGroup,
    FolderHub,
    ModelReference,
    Overrides,
    Overwrite,
    Recipe,
    settings_option,
    share_of_work,
)
from ..core.terminal import say


# Everything else is imported inside the commands, so that `--help` need not import torch.
if TYPE_CHECKING:
    from .run import FineTuned
    from .safety.forgetting import Forgetting


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Fine-tune a model to few structures, never to a worse one: "
    "evenfield finetune MODEL DATA OUT, or one of the commands below.",
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
        str | None,
        typer.Option(help="licence of the new weights; that of the base model when not given"),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="converted pretraining data, for the forgetting report, instead of the probe set "
            "that the model carries"
        ),
    ] = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[bool, settings_option("finetune.config:FineTuneConfig")] = False,
) -> None:
    """Fine-tune a model to few structures.

    Prints the errors at step 0, how much of each change was kept, and what was forgotten. If DATA
    is a file, it is first converted into the folder OUT-data. If the command is repeated after a
    failure, it uses that data set again.

    The word `run` can be left out. `--settings` lists the strategies. If ASE does not find the
    labels in a file, name them with source.columns.energy=...

    Example: evenfield finetune runs/uniform/model runs/titanium runs/titanium-model
    num_structures=16 strategy=full
    """
    from ..core.destination import check_destination
    from ..core.settings import load_settings
    from ..model_zoo.hub.load import load
    from .config import FineTuneConfig
    from .run import finetune
    from .safety.forgetting import chosen_probe, forgetting_report
    from .save import check_model_place, heads_left_behind, save_finetuned
    from .target import place_of_data

    config = load_settings(FineTuneConfig, recipe, overrides)
    work = out.with_name(f"{out.name}-data")
    read = [name for name in (model, data, probe, config.replay.data, recipe) if name is not None]
    check_model_place(out, overwrite=overwrite, inputs=read)
    # if there already is a data set at `work`, the conversion checks it
    check_destination(work, overwrite=True, inputs=read)

    loaded = load(model, folder_hub)
    # read before the fine-tuning, so that an unreadable probe does not waste its time
    structures = chosen_probe(loaded, probe)
    with place_of_data(work, replaces_model=overwrite and out.exists()) as place:
        result = finetune(
            loaded, data, config, work=place, overwrite=overwrite, quiet=False, say=say
        )
        forgetting = forgetting_report(loaded.potential, result.potential, structures)
        _print_result(result, forgetting)
        saved = save_finetuned(result, loaded, out, licence, forgetting, overwrite=overwrite)
    say(f"model: {saved}")
    if loaded.uncertainties:
        say(
            "without a record of uncertainty: that of the base model holds for its weights only; "
            f"make one from structures that were not learned from with `evenfield finetune attach "
            f"{saved} DATA --level-of-theory {quote(result.level_of_theory)} --calibrate-on test`"
        )
    left = heads_left_behind(loaded, result.potential)
    if left:
        say(
            f"without the heads {', '.join(left)}: {result.strategy} has changed the features that "
            f"they read; fit them again with `evenfield finetune head {saved} DATA {saved}`"
        )


@app.command()
def curve(
    model: ModelReference,
    data: Annotated[
        Path, typer.Argument(help="folder of a converted data set of one level of theory")
    ],
    out: Annotated[
        Path,
        typer.Argument(help="file to write, such as fewshot.json; the figure is next to it"),
    ],
    overrides: Overrides = None,
    recipe: Recipe = None,
    folder_hub: FolderHub = None,
    task: Annotated[
        str | None,
        typer.Option(help="K/N: only every N-th cell, beginning with the K-th, for job arrays"),
    ] = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[bool, settings_option("finetune.few_shot.curve:CurveConfig")] = False,
) -> None:
    """Measure errors against the number of training structures.

    Compares the pretrained model, step 0, the strategies, and training from scratch. To continue an
    interrupted curve, run the same command again. With --overwrite, an existing curve of another
    model, data set or settings is renamed, and its figure is replaced.

    Example: evenfield finetune curve runs/uniform/model runs/titanium runs/fewshot.json
    sizes=[4,16] seeds=[0] strategies=[refit,full]
    """
    from ..core.figures.style import figure_png
    from ..core.files import file_errors, write_atomically
    from ..core.settings import load_settings
    from ..model_zoo.hub.load import load
    from .few_shot.curve import CurveConfig, few_shot_curve
    from .few_shot.curve_plot import KIND, draw_few_shot_curve

    settings = load_settings(CurveConfig, recipe, overrides)
    share = share_of_work(task)
    picture = _picture_of(out, overwrite)
    curve = few_shot_curve(
        load(model, folder_hub),
        data,
        out,
        settings,
        task=share,
        overwrite=overwrite,
        say=say,
    )
    if share is not None:
        say(f"task {task} is done; when all are, run the same command without --task")
        return

    _print_table("force MAE (eV/A)", *curve.table("force_mae"))
    _print_table("energy MAE (eV/atom)", *curve.table("energy_mae_per_atom"))
    for name in settings.strategies:
        ratio = curve.times_fewer(name)
        if ratio is not None:
            say(
                f"{name}: {ratio:.2g} times fewer structures than from scratch "
                "for the same force error"
            )
    with file_errors(picture):
        png = figure_png(draw_few_shot_curve(curve), dots_per_inch=130, kind=KIND)
        write_atomically(picture, png)
    say(f"curve: {out}\nplot: {picture}")


@app.command()
def attach(
    model: Annotated[Path, typer.Argument(help="folder of a pretrained model")],
    data: Annotated[Path, typer.Argument(help="the converted data set that it was trained on")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace those that the model has")
    ] = False,
    level_of_theory: Annotated[
        str | None,
        typer.Option(help="add the uncertainty of this level of theory, and nothing else"),
    ] = None,
    calibrate_on: Annotated[
        Literal["valid", "test"],
        typer.Option(help="split that the model has not learned from, for radii of errors"),
    ] = "valid",
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate",
            help="only renew the scales of radii, from DATA that the model was not trained on",
        ),
    ] = False,
) -> None:
    """Add probe set, posterior and uncertainty to a model folder.

    They are made from the training data of the model. If the model has no record of the structures
    that it was trained on, this is added too. The weights do not change. With --recalibrate, the
    radii of errors are calibrated to your own structures.

    Example: evenfield finetune attach runs/mine/model runs/data
    """
    from .safety import trust

    if recalibrate:
        names = trust.recalibrate(
            model, data, level_of_theory=level_of_theory, calibrate_on=calibrate_on
        )
        say(f"{model}: now with {', '.join(names)} for data like {data}")
        return
    names = trust.attach_trust(
        model,
        data,
        overwrite=overwrite,
        level_of_theory=level_of_theory,
        calibrate_on=calibrate_on,
        say=say,
    )
    say(f"{model}: now with {', '.join(names)}")


@app.command()
def head(
    model: ModelReference,
    data: Annotated[
        Path, typer.Argument(help="labelled structures in a file that ASE reads, no database")
    ],
    out: Annotated[
        Path, typer.Argument(help="folder of the model with the head; may be MODEL itself")
    ],
    overrides: Overrides = None,
    recipe: Recipe = None,
    folder_hub: FolderHub = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="replace what OUT holds, and a head of the same name"),
    ] = False,
    show_settings: Annotated[
        bool, settings_option("finetune.property_heads.config:HeadConfig")
    ] = False,
) -> None:
    """Fit a head for another property to a frozen model, in closed form.

    The property can be charges, a dipole, a number or a class of each structure, for example. The
    labels are under a key of ASE's results, info or arrays. The weights of the model do not change.
    Prints the errors on held-out structures.

    Example: evenfield finetune head evenfield-1 molecules.extxyz runs/dipoles head=dipole
    """
    from ..core.settings import load_settings
    from ..model_zoo.hub.load import load
    from .property_heads.config import HeadConfig
    from .property_heads.fit import fit_head
    from .property_heads.save import check_place_of_head, save_head

    config = load_settings(HeadConfig, recipe, overrides)
    loaded = load(model, folder_hub)
    read = [name for name in (data, recipe) if name is not None]
    name = config.head_name
    check_place_of_head(loaded, model, out, name, overwrite=overwrite, inputs=read)

    fitted = fit_head(loaded, data, config, say=say, quiet=False)
    saved = save_head(fitted, loaded, model, out, overwrite=overwrite)
    about = fitted.description
    rows = []
    for figure, value in about.errors.items():
        rows.append([figure, _number(value, 4), _number(about.guess.get(figure), 4)])
    say(f"{name} ({about.unit}) of {about.num_held_out} structures that were held out:")
    _print_table("", ["", "head", "trivial guess"], rows)
    say(f"it knows {' '.join(about.elements)}, and refuses other elements")
    if about.silent_elements:
        say(f"atoms of {' '.join(about.silent_elements)} had no label, and get NaN")
    say(f"model: {saved}, with the heads {', '.join(loaded.heads | {name: fitted})}")


def _picture_of(out: Path, overwrite: bool) -> Path:
    """The path of the figure of a curve, next to `out`.

    Raises CommandLineError if `out` is a .png file, and DestinationError if the place holds
    something else.
    """
    from ..core.destination import check_destination, png_kind
    from .few_shot.curve_plot import KIND

    picture = out.with_suffix(".png")
    if picture == out:
        raise CommandLineError(f"OUT={out}", remedy="name a .json file; the figure is next to it")
    # the figure of a continued curve may be replaced
    check_destination(
        picture,
        overwrite=overwrite or out.is_file(),
        file_kind=png_kind(KIND),
        elsewhere="move it away, or choose another OUT",
    )
    return picture


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    from ..core.rich_console import Console

    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _energy(value: float | None) -> str:
    """An energy in eV/atom, shown in meV/atom."""
    return _number(value, 1, 1000)


def _force(value: float | None) -> str:
    """A force in eV/A."""
    return _number(value, 4)


def _print_result(result: FineTuned, forgetting: Forgetting) -> None:
    _print_set_up(result)
    _print_stages(result)
    _print_forgetting(forgetting)
    _print_notes(result)


def _print_set_up(result: FineTuned) -> None:
    from .target import alike

    if result.started_from != result.level_of_theory:
        say(f"new head {result.level_of_theory}, a copy of the head {result.started_from}")
    rows = [
        [row.name, _energy(row.energy_mae_per_atom), _force(row.force_mae)] for row in result.table
    ]
    num_train = len(result.target.train)
    num_copies = num_train - len(alike(result.target.train))
    copies = f" ({num_copies} of them copies)" if num_copies else ""
    _print_table(
        f"{result.level_of_theory}: {num_train} structures to learn from{copies}",
        ["", "energy MAE (meV/atom)", "force MAE (eV/A)"],
        rows,
    )


def _print_stages(result: FineTuned) -> None:
    rows = []
    for name, stage in result.stages.items():
        undone = " (undone: worse on held-out structures)" if stage.kept == 0.0 else ""
        errors = stage.errors
        energy = _energy(errors.energy_mae_per_atom)
        rows.append([name + undone, energy, _force(errors.force_mae), f"{stage.seconds:.1f}"])
    judged = result.final.errors
    _print_table(
        f"errors on the {judged.split} split, {judged.num_structures} structures",
        ["", "energy MAE (meV/atom)", "force MAE (eV/A)", "seconds"],
        rows,
    )


def _print_forgetting(forgetting: Forgetting) -> None:
    rows = []
    for row in forgetting.rows:
        energies = [_energy(errors["energy"]) for errors in (row.before, row.after)]
        forces = [_force(errors["forces"]) for errors in (row.before, row.after)]
        rows.append([f"{row.kind} ({row.num_structures})", *energies, *forces])
    _print_table(
        "what was forgotten",
        ["probe", "energy before (meV/atom)", "after", "force before (eV/A)", "after"],
        rows,
    )


def _print_notes(result: FineTuned) -> None:
    from ase.data import chemical_symbols

    reference = result.reference
    if reference.narrowed:
        say(
            "E0 moved less than its fit asked for: the whole change was worse on structures that "
            "the fit had not seen"
        )
    if reference.isolated_atoms:
        left = ", ".join(f"{name} {ev:.2f}" for name, ev in reference.isolated_atoms.items())
        say(f"isolated atoms, label minus prediction with the new E0 (eV): {left}")
    if reference.another_zero:
        say("the energies have another zero than the model's: E0 of all elements was refitted")
    if reference.undetermined:
        names = ", ".join(reference.undetermined)
        say(f"E0 not determined by these structures, kept near the pretrained: {names}")

    silent = result.elements_without_energy
    if silent:
        names = ", ".join(chemical_symbols[z] for z in sorted(silent))
        say(
            f"no structure with {names} has an energy, so that the energies of "
            f"{result.level_of_theory} do not hold for them"
        )

    refit = result.refit
    if refit.duplicates:
        say(f"{refit.duplicates} structures are copies of others, and were left out with them")
    noise = ", ".join(f"{label} {value:.3g}" for label, value in refit.noise.items())
    say(
        f"{refit.rows} labels; estimated noise of a typical structure "
        f"(eV/atom, eV/A, eV/A^3): {noise}"
    )
