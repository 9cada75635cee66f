"""`evenfield data ...`: generate, convert, inspect. Thin: each command is one Python call with the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.command_line import Overrides, Recipe, settings_option, share_of_work


app = typer.Typer(no_args_is_help=True, help="From any source to a weighted, resumable stream.")

Source = Annotated[
    str, typer.Argument(help="file, folder, glob, URL or hub data set owner/name[@revision]")
]


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="file to write, .extxyz or .extxyz.gz")],
    overrides: Overrides = None,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.demo.generate:GeneratorConfig")
    ] = False,
) -> None:
    """Build the embedded data: a multi-element set with a long tail, labelled by GFN1-xTB and EMT.

    Example: evenfield data generate runs/embedded.extxyz.gz num_structures=2000 seed=0
    """
    from ..core.settings import load_settings
    from .demo.generate import GeneratorConfig
    from .demo.generate import generate as run

    run(load_settings(GeneratorConfig, None, overrides), out)


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="folder of the converted data set")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; one per core when not given")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="K/N: only stage the K-th of N shares of a big source")
    ] = None,
    trust_units: Annotated[
        bool, typer.Option("--trust-units", help="convert though units look wrong")
    ] = False,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.convert.convert:ConvertConfig")
    ] = False,
) -> None:
    """Convert a source to Parquet shards with a census, after a check of its units and signs.

    A conversion that was stopped goes on from its finished parts. With --task K/N, several machines share the
    work; the same command without --task then finishes.

    Example: evenfield data convert mine.extxyz runs/mine level_of_theory=PBE columns.energy=REF_energy
    units.energy=eV
    """
    from ..core.settings import load_settings
    from .convert.convert import ConvertConfig
    from .convert.convert import convert as run

    words = [*(overrides or []), *(["trust_units=true"] if trust_units else [])]
    config = load_settings(ConvertConfig, recipe, words)
    info = run(source, out, config, workers=workers, task=share_of_work(task))
    if info is None:
        typer.echo(
            f"{out}: task {task} is staged; when all are, run the same command without --task"
        )
        return
    records, twins = info["records"], info["near_duplicates"]
    splits = ", ".join(f"{count} {split}" for split, count in info["num_structures"].items())
    where = f" (see {out / 'rejected.jsonl'})" if records["rejected"] else ""
    typer.echo(
        f"{out}: {records['read']} read = {records['kept']} kept ({splits}) + {records['filtered']} filtered + "
        f"{records['rejected']} rejected{where}; near duplicates: {twins['groups']} groups, "
        f"{twins['groups_in_train_and_test']} in both train and test; "
        f"levels of theory: {', '.join(info['levels_of_theory'])}"
    )


@app.command("check-units")
def check_units(
    source: Source,
    overrides: Overrides = None,
    recipe: Recipe = None,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.convert.convert:ConvertConfig")
    ] = False,
) -> None:
    """Show what the check of units and signs finds in a sample of a source; exit code 1 if a test fails.

    Example: evenfield data check-units LeMaterial/LeMat-Traj hub_config=compatible_pbe --recipe lemat
    """
    from ..core.settings import load_settings
    from .checks.unit_check import check_units as run
    from .convert.convert import ConvertConfig

    report = run(source, load_settings(ConvertConfig, recipe, overrides))
    for finding in report.findings:
        typer.echo(f"{finding.outcome:8s}{finding.text}")
    typer.echo(f"{report.num_structures} structures sampled from {source}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="folder of a converted data set")]) -> None:
    """Show schema, examples, distributions and suspected outliers; writes FOLDER/inspection.html and inspection.png.

    Example: evenfield data inspect runs/mine
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .checks.inspection import inspect as run
    from .checks.inspection_page import about, level_table, outlier_counts, write_inspection

    inspection = run(folder)
    picture, page = write_inspection(inspection)
    console = Console()
    for text in about(inspection):
        console.print(Text(text))
    for caption, header, rows in (level_table(inspection), outlier_counts(inspection)):
        table = Table(*header, title=caption)
        for row in rows:
            table.add_row(*map(Text, row))  # ids and levels of theory may hold brackets
        console.print(table)
    console.print(Text(f"page: {page}, picture: {picture}"))


@app.command()
def census(folder: Annotated[Path, typer.Argument(help="folder of a converted data set")]) -> None:
    """Print what a data set holds, element by element, and draw it as FOLDER/census.png."""
    from rich.console import Console
    from rich.table import Table

    from ..core.figures.periodic_table import periodic_table_heat_map
    from .census.census import count_shards
    from .store.shards import read_info

    content = count_shards(folder / name for name in read_info(folder)["shards"]).to_dict()
    table = Table(
        "element", "train", "valid", "test", "atoms", "force RMS (eV/A)", title=str(folder)
    )
    rows = sorted(
        content["per_element"].items(), key=lambda item: -sum(item[1]["structures"].values())
    )
    for symbol, row in rows:
        rms = "-" if row["force_rms"] is None else f"{row['force_rms']:.3f}"
        splits = (str(row["structures"].get(split, 0)) for split in ("train", "valid", "test"))
        table.add_row(symbol, *splits, str(sum(row["atoms"].values())), rms)
    console = Console()
    console.print(table)
    for level, row in content["levels_of_theory"].items():
        undetermined = ", ".join(row["undetermined"]) or "none"
        console.print(f"{level}: {row['structures']}; E0 undetermined by the data: {undetermined}")
    counts = {symbol: sum(row["structures"].values()) for symbol, row in rows}
    picture = folder / "census.png"
    periodic_table_heat_map(counts, str(folder), "structures with the element", log=True).savefig(
        picture
    )
    console.print(f"picture: {picture}")


@app.command()
def weights(
    folder: Annotated[Path, typer.Argument(help="folder of a converted data set")],
    overrides: Overrides = None,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.census.weights:WeightConfig")
    ] = False,
) -> None:
    """Print and draw what importance weights will do: effective sample, share of each element before and after.

    Example: evenfield data weights runs/mine beta=0.5
    """
    from rich.console import Console
    from rich.table import Table

    from ..core.settings import load_settings
    from .census.weights import WeightConfig
    from .checks.weight_report import weight_report

    config = load_settings(WeightConfig, None, overrides)
    report = weight_report(folder, config)
    table = Table(
        "element",
        "structures",
        "copies an epoch",
        "ratio",
        "share before",
        "share after",
        title=str(folder),
    )
    for symbol, before, after, ratio in report.rows():
        shares = (f"{n / report.num_structures:.2%}" for n in (before, after))
        table.add_row(symbol, str(before), f"{after:.1f}", f"{ratio:.2f}", *shares)
    console = Console()
    console.print(table)
    console.print(
        f"beta {config.beta}, {config.over} over elements: weights {report.smallest:.3f} to {report.largest:.3f}; the "
        f"weighted epoch is worth {report.effective_share:.0%} of {report.num_structures} structures "
        f"(floor {config.min_effective_share:.0%})"
    )
    picture = folder / "weights.png"
    report.save_picture(picture, f"{folder}, beta {config.beta}")
    console.print(f"picture: {picture}")
