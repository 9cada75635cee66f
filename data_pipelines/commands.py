"""`evenfield data ...`: generate, convert, corpus, check-units, inspect, census, weights, enrich.

Each command makes one Python call with the same argument names and prints the result. Slow imports
are inside the commands, so that `evenfield --help` stays fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.addresses import without_secrets
from ..core.command_line import (
    Overrides,
    Overwrite,
    Recipe,
    Workers,
    settings_option,
    share_of_work,
)
from ..core.errors import EvenfieldError
from ..core.files import file_errors, write_atomically
from ..core.terminal import say


if TYPE_CHECKING:
    from rich.table import Table

    from .census.weights import WeightConfig
    from .checks.weight_report import WeightReport
    from .convert.convert import ConvertConfig


# most file names in one line of output
MOST_FILES = 4

app = typer.Typer(no_args_is_help=True, help="From any source to a weighted, resumable stream.")

Source = Annotated[
    str, typer.Argument(help="file, folder, glob, URL or hub data set owner/name[@revision]")
]
DataSet = Annotated[Path, typer.Argument(help="folder of a converted data set")]


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="file to write, .extxyz or .extxyz.gz")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.demo.generate:GeneratorConfig")
    ] = False,
) -> None:
    """Make demo data: many elements, most of them rare, labelled by GFN1-xTB and EMT.

    Example: evenfield data generate runs/demo.extxyz.gz num_structures=2000 seed=0
    """
    from ..core.settings import load_settings
    from .demo.generate import GeneratorConfig
    from .demo.generate import generate as run

    run(load_settings(GeneratorConfig, None, overrides), out, overwrite=overwrite)


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="folder of the converted data set")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    workers: Workers = None,
    task: Annotated[
        str | None, typer.Option(help="K/N: only stage the K-th of N shares of a big source")
    ] = None,
    trust_units: Annotated[
        bool, typer.Option("--trust-units", help="convert although units look wrong")
    ] = False,
    overwrite: Overwrite = False,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.convert.convert:ConvertConfig")
    ] = False,
) -> None:
    """Convert a source to Parquet shards with a census, after a check of its units.

    The check also covers the signs of labels. Run the command again to continue an interrupted
    conversion: only unfinished parts are converted. With --task K/N, several machines share the
    work; when all tasks are done, run the same command without --task to finish. OUT is created
    only when the new data set is complete. With --overwrite, it then replaces an existing data set.

    Example: evenfield data convert mine.extxyz runs/mine level_of_theory=PBE
    columns.energy=REF_energy units.energy=eV
    """
    from ..core.settings import load_settings
    from .checks.unit_check import UnitError
    from .convert.convert import ConvertConfig
    from .convert.convert import convert as run
    from .convert.finish import SpellingError
    from .sources.formats import SUFFIXES
    from .sources.label_tally import from_json, label_report
    from .sources.locations import files_left_out
    from .structure import BadRecordError

    words = list(overrides or [])
    if trust_units:
        words.append("trust_units=true")
    config = load_settings(ConvertConfig, recipe, words)

    # remedies are added here because other callers of `convert` do not have these options
    try:
        info = run(
            source, out, config, workers=workers, task=share_of_work(task), overwrite=overwrite
        )
    except BadRecordError as error:
        _add_remedy(error, "set skip_bad=true to leave bad records out")
        raise
    except SpellingError as error:
        _add_remedy(error, "if all structures have the same level, set level_of_theory=NAME")
        raise
    except UnitError as error:
        _add_remedy(error, "if the source is right, add --trust-units")
        raise

    if info is None:
        say(
            f"{out}: task {task} is staged; when all tasks are, run the same command without --task"
        )
    else:
        say(_converted(out, info))
        for line in label_report(from_json(info.get("labels", {}))):
            say(line)
        left_out = files_left_out(source, SUFFIXES)
        if left_out:
            names = ", ".join(left_out[:MOST_FILES])
            count = "one other file" if len(left_out) == 1 else f"{len(left_out)} other files"
            more = ", ..." if len(left_out) > MOST_FILES else ""
            say(f"not read: {count} of the folder ({names}{more})")
        for note in _about_splits(info, config):
            say(note)


@app.command()
def corpus(
    recipe: Annotated[Path, typer.Argument(help="YAML file, or a shipped recipe's name")],
    out: Annotated[Path, typer.Argument(help="folder of the data set")],
    overrides: Overrides = None,
    sources: Annotated[
        Path, typer.Option("--sources", help="folder in which the recipe's files are")
    ] = Path(),
    workers: Workers = None,
    task: Annotated[
        str | None, typer.Option(help="K/N: only stage the K-th of N shares of the sources")
    ] = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.corpus.config:CorpusConfig")
    ] = False,
) -> None:
    """Convert several sources to one data set, recording licences and citations.

    A source is refused if its licence does not allow publishing a model trained on it. A material
    that occurs in several sources is kept in one split. Run the command again to continue an
    interrupted build.

    Example: evenfield data corpus evenfield-1 runs/corpus --sources downloads
    """
    from ..core.settings import load_settings
    from .checks.unit_check import UnitError
    from .corpus.config import CorpusConfig
    from .corpus.corpus import build_corpus
    from .structure import BadRecordError

    config = load_settings(CorpusConfig, recipe, overrides)
    try:
        info = build_corpus(
            config,
            out,
            folder=sources,
            workers=workers,
            task=share_of_work(task),
            overwrite=overwrite,
        )
    except BadRecordError as error:
        _add_remedy(error, "set skip_bad: true for this source to leave bad records out")
        raise
    except UnitError as error:
        _add_remedy(error, "if the source is right, set trust_units: true for it")
        raise

    if info is None:
        say(
            f"{out}: task {task} is staged; when all tasks are, run the same command without --task"
        )
        return
    say(_converted(out, info))
    for line in _about_sources(out, info):
        say(line)


def _about_sources(out: Path, info: dict[str, Any]) -> list[str]:
    """Lines about each source, its labels, and the materials that occur in several sources."""
    from .convert.finish import prefix_of
    from .sources.label_tally import from_json, label_report

    lines = []
    for source in info["sources"]:
        counts = [
            f"{level} {sum(by_split.values())}"
            for level, by_split in source["levels_of_theory"].items()
        ]
        lines.append(f"{source['name']} ({source['licence']}): {', '.join(counts)}")
        tally = from_json(source["labels"])
        lines += [f"  {line}" for line in label_report(tally, prefix_of(source))]
    shared = info["splits"].get("between_sources")
    if shared is not None:
        lines.append(
            f"materials in several sources: {shared['materials']}; {shared['moved']} structures "
            f"moved so that each is on one side, {shared['dropped_from_training']} dropped from "
            f"training, {shared['still_on_two_sides']} materials still on two sides"
        )
    if not info["publishable"]:
        lines.append("a model that is trained on this corpus cannot be published (data_card.md)")
    lines.append(f"sources, licences and citations: {out / 'data_card.md'}")
    return lines


def _add_remedy(error: EvenfieldError, remedy: str) -> None:
    error.remedy = remedy if error.remedy is None else f"{error.remedy}; or {remedy}"


def _converted(out: Path, info: dict[str, Any]) -> str:
    """Summarise a conversion in one line, from the content of dataset_info.json."""
    records = info["records"]
    duplicates = info["near_duplicates"]
    splits = ", ".join(f"{count} {split}" for split, count in info["num_structures"].items())
    where = f" (see {out / 'rejected.jsonl'})" if records["rejected"] else ""
    return (
        f"{out}: {records['read']} read = {records['kept']} kept ({splits}) "
        f"+ {records['filtered']} filtered + {records['rejected']} rejected{where}; "
        f"near duplicates: {duplicates['groups']} groups, "
        f"{duplicates['groups_in_train_and_test']} in both train and test; "
        f"levels of theory: {', '.join(info['levels_of_theory'])}"
    )


def _about_splits(info: dict[str, Any], config: ConvertConfig) -> list[str]:
    """Notes about the splits, one line each, from the content of dataset_info.json."""
    splits = info["splits"]
    notes = []
    if info["split_files"]:
        counts = ", ".join(f"{count} {split}" for split, count in info["split_files"].items())
        notes.append(
            f"splits as the names of the files state them ({counts}); split_by=group ignores them"
        )
    if splits["moved_to_near_copies"]:
        notes.append(
            f"{splits['moved_to_near_copies']} structures follow a near copy into its split"
        )
    if splits["cut_into_runs"]:
        notes.append(
            "too few groups for all splits: runs of consecutive structures were dealt to them, so "
            "errors may look too good where neighbouring frames are alike; state groups with "
            "columns.group=COLUMN"
        )
    moved = splits["moved_into_training"]
    if moved:
        subject = "one structure is" if moved == 1 else f"{moved} structures are"
        notes.append(
            f"{subject} in training because the level of theory had no other with one of the "
            "elements"
        )

    lost = list(splits["levels_not_in_training"])
    for level, symbols in splits["elements_not_in_training"].items():
        lost.append(f"{', '.join(symbols)} at {level!r}")
    if lost:
        notes.append(
            f"without training structures, because of stated splits: {'; '.join(lost)}; a model of "
            "this data set does not know them"
        )
    crossing = info["near_duplicates"]["groups_in_train_and_test"]
    if crossing:
        remedy = "split_by=group keeps them together"
        if config.split_by != "file" or splits["near_copies_left_apart"]:
            remedy = "see duplicates.jsonl"
        notes.append(
            f"{crossing} groups of near copies are in both train and test, so test errors look too "
            f"good: {remedy}"
        )
    empty = [split for split, count in info["num_structures"].items() if not count]
    wanted = {"valid": config.valid_share, "test": config.test_share}
    empty = [split for split in empty if wanted.get(split)]
    if empty and not splits["stated"]:
        notes.append(
            f"no structures for {' and '.join(empty)}: the data set has too few groups; "
            "split_by=structure divides them"
        )
    return notes


@app.command("check-units")
def check_units(
    source: Source,
    overrides: Overrides = None,
    recipe: Recipe = None,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.convert.convert:ConvertConfig")
    ] = False,
) -> None:
    """Check units and signs in a sample of a source; exit code 1 if a test fails.

    Example: evenfield data check-units LeMaterial/LeMat-Traj hub_config=compatible_pbe
    --recipe lemat
    """
    from ..core.settings import load_settings
    from .checks.unit_check import check_units as run
    from .convert.convert import ConvertConfig

    report = run(source, load_settings(ConvertConfig, recipe, overrides))
    for finding in report.findings:
        say(f"{finding.outcome:8s}{finding.text}")
    say(f"{report.num_structures} structures sampled from {without_secrets(source)}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def inspect(folder: DataSet) -> None:
    """Show the schema, examples, distributions and suspected outliers of a data set.

    Also writes FOLDER/inspection.html and FOLDER/inspection.png.

    Example: evenfield data inspect runs/mine
    """
    from rich.table import Table

    from ..core.rich_console import Console
    from .checks.inspection import inspect as run
    from .checks.inspection_page import about, level_table, outlier_counts, write_inspection

    inspection = run(folder)
    picture, page = write_inspection(inspection)

    console = Console()
    for text in about(inspection):
        console.print(text)
    for shown in (level_table(inspection), outlier_counts(inspection)):
        table = Table(*shown.header, title=shown.caption)
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"page: {page}, picture: {picture}")


@app.command()
def census(folder: DataSet) -> None:
    """Count the structures and atoms of each element, and draw FOLDER/census.png.

    Example: evenfield data census runs/mine
    """
    from ..core.figures.periodic_table import periodic_table_heat_map
    from ..core.figures.style import check_drawing, figure_png
    from ..core.rich_console import Console
    from .census.census import count_shards
    from .store.folder_files import CENSUS_PICTURE
    from .store.shards import read_info

    picture = folder / "census.png"
    kind = check_drawing(picture, CENSUS_PICTURE)
    shards = read_info(folder)["shards"]
    content = count_shards(folder / name for name in shards).to_dict()
    counts = {
        symbol: sum(row["structures"].values()) for symbol, row in content["per_element"].items()
    }

    console = Console()
    console.print(_census_table(str(folder), content["per_element"], counts))
    for level, row in content["levels_of_theory"].items():
        undetermined = ", ".join(row["undetermined"]) or "none"
        console.print(f"{level}: {row['structures']}; E0 undetermined by the data: {undetermined}")

    figure = periodic_table_heat_map(counts, str(folder), "structures with the element", log=True)
    # replaces a symbolic link at this place instead of writing through it
    with file_errors(picture):
        write_atomically(picture, figure_png(figure, kind=kind))
    console.print(f"picture: {picture}")


def _census_table(title: str, per_element: dict[str, Any], counts: dict[str, int]) -> Table:
    """One row per element, the most frequent first."""
    from rich.table import Table

    table = Table("element", "train", "valid", "test", "atoms", "force RMS (eV/A)", title=title)
    for symbol in sorted(per_element, key=lambda symbol: -counts[symbol]):
        row = per_element[symbol]
        splits = [str(row["structures"].get(split, 0)) for split in ("train", "valid", "test")]
        atoms = str(sum(row["atoms"].values()))
        force_rms = "-" if row["force_rms"] is None else f"{row['force_rms']:.3f}"
        table.add_row(symbol, *splits, atoms, force_rms)
    return table


@app.command()
def weights(
    folder: DataSet,
    overrides: Overrides = None,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.census.weights:WeightConfig")
    ] = False,
) -> None:
    """Show how importance weights change each element's share in an epoch.

    The command prints a table and draws FOLDER/weights.png. Below the table, it summarises how such
    weights, and other methods for rare elements, changed the errors in our measurements.

    Example: evenfield data weights runs/mine beta=0.5
    """
    from ..core.figures.style import check_drawing
    from ..core.rich_console import Console
    from ..core.settings import load_settings
    from .census.weights import WeightConfig
    from .checks.expected_effects import expectation
    from .checks.weight_report import weight_report
    from .store.folder_files import WEIGHTS_PICTURE

    config = load_settings(WeightConfig, None, overrides)
    picture = folder / "weights.png"
    check_drawing(picture, WEIGHTS_PICTURE)
    report = weight_report(folder, config)
    report.save_picture(picture, f"{folder}, beta {config.beta}")

    console = Console()
    console.print(_weight_table(str(folder), report))
    console.print(_weight_summary(config, report))
    for line in expectation(config):
        console.print(line)
    console.print(f"picture: {picture}")


def _weight_table(title: str, report: WeightReport) -> Table:
    from rich.table import Table

    header = ("element", "structures", "copies an epoch", "ratio", "share before", "share after")
    table = Table(*header, title=title)
    for symbol, before, after, ratio in report.rows():
        share_before = f"{before / report.num_structures:.2%}"
        share_after = f"{after / report.num_structures:.2%}"
        table.add_row(
            symbol, str(before), f"{after:.1f}", f"{ratio:.2f}", share_before, share_after
        )
    return table


def _weight_summary(config: WeightConfig, report: WeightReport) -> str:
    return (
        f"beta {config.beta}, {config.over} over elements: "
        f"weights {report.smallest:.3f} to {report.largest:.3f}; "
        f"the weighted epoch is worth {report.effective_share:.0%} of "
        f"{report.num_structures} structures (floor {config.min_effective_share:.0%})"
    )


@app.command()
def enrich(
    folder: DataSet,
    out: Annotated[Path, typer.Argument(help="folder of the new data set")],
    overrides: Overrides = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[
        bool, settings_option("data_pipelines.enrich.enrich:EnrichConfig")
    ] = False,
) -> None:
    """Generate cheaply labelled structures of rare elements, as a separate data set.

    The command takes training structures with a common, chemically similar element and puts the
    rare element in its place. It scales distances by covalent radii, rattles the atoms, and labels
    the result with the oracle. The new data set has its own level of theory.

    Example: evenfield data enrich runs/mine runs/mine-cheap oracle=GFN1-xTB elements=rare
    """
    from ..core.settings import load_settings
    from .enrich.enrich import EnrichConfig
    from .enrich.enrich import enrich as run

    config = load_settings(EnrichConfig, None, overrides)
    done = run(folder, out, config, workers=workers, overwrite=overwrite)
    for symbol, count in done.structures.items():
        hosts = ", ".join(f"{n} of {host}" for host, n in done.from_relatives[symbol].items())
        say(f"{symbol}: {count} structures, from {hosts}")
    if done.refused:
        refused = ", ".join(f"{count} {reason}" for reason, count in done.refused.items())
        say(f"candidates refused, and replaced where possible: {refused}")
    say(
        f"{out}: {sum(done.structures.values())} structures at {done.level_of_theory}; train with "
        f"data=[{folder},{out}] default_level='{done.main_level}'"
    )
