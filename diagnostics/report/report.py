"""The report on one or more pretraining runs: read their files, draw, and write one HTML page.

Every number on the page is in one of the files or follows from them. No model is evaluated here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ...core.files import file_errors
from ...core.labels import LABELS
from ...core.numbers import FORCE_UNIT, table_cell, written_unit
from ...core.pages.page import Block, Section, Table, Text, file_stem, write_page
from ...model_zoo.evaluation.evenness import GROUPS, evenness
from ...model_zoo.evaluation.parity import draw_parity
from ...model_zoo.evaluation.summary import Errors, ErrorSummary, mean_absolute
from ...pretrain.monitor.learning_curves import draw_learning_curves
from .documents import markdown
from .element_sections import element_section, reweighting_section
from .few_shot_section import few_shot_section
from .pictures import PictureFolder
from .run_files import MADE_BY, RUN_FILES, ReportError, Run


PAGE = "report.html"
# Tolerated difference as a share of the MAE: predictions.npz has single precision, so that it never
# agrees exactly with evaluation.json.
DISAGREEMENT = 0.01


def files_of_report(folder: Path) -> Callable[[str], bool]:
    """A predicate: whether a path, relative to `folder`, is a file of the report in `folder`.

    It is False for a user's own files.
    """
    page = ""
    if (folder / PAGE).is_file():
        page = (folder / PAGE).read_text(encoding="utf-8", errors="replace")
    # the page names all pictures that were written with it
    return lambda name: name == PAGE or (name.startswith("pictures/") and name in page)


def write_report(
    out_dir: Path | str,
    *,
    title: str,
    runs: dict[str, Path],
    reweighting: tuple[str, str] | None = None,
    fewshot: Path | None = None,
    model_card: Path | None = None,
    notes: Path | None = None,
) -> Path:
    """Write the self-contained page report.html, and pictures/*.png and *.svg next to it.

    runs: name -> run folder with metrics.jsonl, evaluation.json and predictions.npz.
    reweighting: names of the runs before and after reweighting. By default, if there are exactly
        two runs, they are compared in their order.
    fewshot, model_card, notes: fewshot.json and two Markdown files. If a file was not given, its
        section says so.

    Returns the path of the page. Raises ReportError if there are no runs, if a file is missing, if
    two runs would have the same file name, or if `reweighting` names an unknown run. The readers
    raise their own errors for a damaged file.
    """
    # check all input before the first picture is drawn, which takes seconds
    if not runs:
        raise ReportError("a report needs at least one run", remedy="name it as name=folder")
    if len({file_stem(name) for name in runs}) < len(runs):
        raise ReportError(
            f"the names {', '.join(runs)} differ only in characters that file names cannot have",
            remedy="choose other names",
        )

    out_dir = Path(out_dir)
    pictures = PictureFolder(out_dir)
    loaded = [Run.read(name, Path(folder)) for name, folder in runs.items()]

    pair = _pair_to_compare(loaded, reweighting)
    # the maps before and after reweighting already show the absolute errors of these two runs
    with_absolute = pair is None or len(loaded) > 2

    sections = [
        _headline_section(loaded),
        reweighting_section(pair, pictures),
        element_section(loaded, pictures, with_absolute=with_absolute),
        _learning_section(loaded, pictures),
        _parity_section(loaded, pictures),
        few_shot_section(fewshot, pictures),
        _document_section("Model card", model_card, folded="Show the card"),
        _document_section("Notes", notes),
        _input_section(loaded, [fewshot, model_card, notes]),
    ]
    return write_page(out_dir / PAGE, title, sections)


def _pair_to_compare(runs: list[Run], names: tuple[str, str] | None) -> tuple[Run, Run] | None:
    """The runs before and after reweighting; None if `names` is None and there are not two runs."""
    if names is None:
        if len(runs) != 2:
            return None
        return runs[0], runs[1]

    by_name = {run.name: run for run in runs}
    for name in names:
        if name not in by_name:
            raise ReportError(f"reweighting names {name!r}, but the runs are {', '.join(by_name)}")
    before, after = names
    return by_name[before], by_name[after]


def _headline_section(runs: list[Run]) -> Section:
    """A table with one column for each run: test set and errors; and a table by level of theory."""
    evaluations = [run.evaluation for run in runs]
    mean = [table_cell(evaluation.mean_over_elements_force_mae) for evaluation in evaluations]
    worst = [_worst_element(evaluation) for evaluation in evaluations]
    rows = [
        ["split", *(evaluation.split for evaluation in evaluations)],
        ["structures", *(f"{evaluation.num_structures:,}" for evaluation in evaluations)],
        ["atoms", *(f"{evaluation.num_atoms:,}" for evaluation in evaluations)],
        *_error_rows(evaluations),
        [f"mean over elements, force MAE ({FORCE_UNIT})", *mean],
        [f"worst element, force MAE ({FORCE_UNIT})", *worst],
        *_evenness_rows(evaluations),
    ]

    # warnings come before the numbers that they concern
    blocks: list[Block] = []
    for run in runs:
        blocks += _disagreements(run)
    header = ["", *(run.name for run in runs)]
    blocks.append(Table("Errors (force errors are per component)", header, rows))
    blocks.append(_level_table(runs))
    return Section("Headline figures", blocks)


def _error_rows(evaluations: list[ErrorSummary]) -> list[list[str]]:
    """One row for the MAE of each label that any run has; force errors also relative to the RMS."""
    rows = []
    for name, label in LABELS.items():
        errors = [evaluation.mae.get(name) for evaluation in evaluations]
        # no run has this label
        if all(error is None for error in errors):
            continue

        unit = written_unit(label.display_unit)
        cells = [table_cell(error, label.display_scale) for error in errors]
        rows.append([f"{label.title} MAE ({unit})", *cells])

    rms = [table_cell(evaluation.force_rms) for evaluation in evaluations]
    relative = [table_cell(evaluation.relative_force_mae, 100) for evaluation in evaluations]
    rows.append([f"force RMS of the labels ({FORCE_UNIT})", *rms])
    rows.append(["force MAE / RMS (%)", *relative])
    return rows


def _evenness_rows(evaluations: list[ErrorSummary]) -> list[list[str]]:
    """One row for each third of the elements, and one for the ratio of rare to common elements."""
    found = [evenness(evaluation) for evaluation in evaluations]
    # a small test set has too few elements for a comparison
    if not any(one.groups for one in found):
        return []

    rows = []
    for name in GROUPS:
        cells = []
        for one in found:
            group = one.groups.get(name)
            cells.append(table_cell(group.relative_force_mae.value, 100) if group else "-")
        rows.append([f"{name} third of the elements, force MAE / RMS (%)", *cells])

    gaps = ["-" if one.gap is None else str(one.gap) for one in found]
    rows.append(["rare over common [90 % interval]", *gaps])
    return rows


def _worst_element(evaluation: ErrorSummary) -> str:
    error = table_cell(evaluation.worst_element_force_mae)
    if not evaluation.worst_element:
        return error
    return f"{evaluation.worst_element}: {error}"


def _disagreements(run: Run) -> list[Text]:
    """Warnings if evaluation.json and predictions.npz come from different evaluations."""
    texts = []
    for name, pairs in run.parity.pairs.items():
        label = LABELS[name]
        # in double precision, because a float32 mean over millions of numbers is inexact
        saved = mean_absolute(pairs.astype(float))
        stated = run.evaluation.mae.get(name)
        if saved is None or not stated:
            continue
        if abs(saved - stated) <= DISAGREEMENT * stated:
            continue

        unit = written_unit(label.error_unit)
        texts.append(
            Text(
                f"{run.name}: {label.title} MAE ({unit}) is {table_cell(saved)} in "
                f"predictions.npz, but {table_cell(stated)} in evaluation.json. They come from "
                "different evaluations: make both again.",
                style="warning",
            )
        )
    return texts


def _level_table(runs: list[Run]) -> Table:
    rows = []
    for run in runs:
        for level, errors in run.evaluation.levels.items():
            rows.append([run.name, level, *_level_cells(errors)])
    header = [
        "run",
        "level of theory",
        "structures",
        f"force MAE ({FORCE_UNIT})",
        f"force RMS ({FORCE_UNIT})",
        "MAE / RMS (%)",
        "energy MAE (meV/atom)",
    ]
    return Table("By level of theory", header, rows)


def _level_cells(errors: Errors) -> list[str]:
    return [
        f"{errors.num_structures:,}",
        table_cell(errors.force_mae),
        table_cell(errors.force_rms),
        table_cell(errors.relative_force_mae, 100),
        table_cell(errors.energy_mae_per_atom, 1000),
    ]


def _learning_section(runs: list[Run], pictures: PictureFolder) -> Section:
    figure = draw_learning_curves({run.name: run.metrics for run in runs})
    alt = "Loss, validation errors, gradient norm, speed and waiting time over the steps"
    picture = pictures.save(figure, "learning-curves", alt)
    rows = []
    for run in runs:
        metrics = run.metrics
        # a single step would be noisy; a short run still needs at least one
        num_steps = len(metrics.steps)
        last_twentieth = max(1, num_steps // 20)
        rows.append(
            [
                run.name,
                f"{metrics.last_step:,}",
                table_cell(metrics.typical("loss", last_twentieth)),
                table_cell(metrics.structures_seen),
                table_cell(metrics.seconds),
                table_cell(metrics.typical("structures_per_s")),
                table_cell(metrics.typical("edges_per_s")),
                table_cell(metrics.typical("data_wait_share"), 100),
            ]
        )
    header = [
        "run",
        "steps",
        "loss at the end",
        "structures seen",
        "time in steps (s)",
        "structures/s",
        "edges/s",
        "waiting for data (%)",
    ]
    caption = "Rates are medians over the steps; the loss is the median of the last twentieth"
    return Section("Learning curves", [picture, Table(caption, header, rows)])


def _parity_section(runs: list[Run], pictures: PictureFolder) -> Section:
    blocks = []
    for run in runs:
        title = f"{run.name}, {run.evaluation.split} split"
        figure = draw_parity(run.parity, run.evaluation, title)
        alt = f"Predicted against reference labels of {run.name}"
        blocks.append(pictures.save(figure, f"parity-{file_stem(run.name)}", alt))
    return Section("Parity", blocks)


def _document_section(heading: str, path: Path | None, folded: str = "") -> Section:
    if path is None:
        return Section(heading, [Text("Left out: no Markdown file was given.")])
    return Section(heading, [markdown(Path(path), folded)])


def _input_section(runs: list[Run], others: list[Path | None]) -> Section:
    """The input files with their digests, so that a page can be traced back to its files."""
    files = [(run.name, run.folder / name) for run in runs for name in RUN_FILES]
    files += [("", Path(path)) for path in others if path is not None]

    rows = []
    for run_name, path in files:
        made_by = MADE_BY.get(path.name, "")
        size = f"{path.stat().st_size:,}"
        rows.append([path.name, run_name, made_by, size, _digest(path)])
    header = ["file", "run", "written by", "bytes", "SHA-256 (start)"]
    table = Table("Files that this page was made from", header, rows, words=True)
    return Section("Inputs", [table])


def _digest(path: Path) -> str:
    """First 64 bits of the SHA-256: enough to tell files apart, and short enough to compare."""
    with file_errors(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return digest.hexdigest()[:16]
