"""The report of one or more pretraining runs: reads their files, draws the pictures, writes one HTML page.

Every number on the page stands in one of the files or follows from them; nothing is evaluated here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from .element_sections import element_section, reweighting_section
from .few_shot_section import few_shot_section
from .page import Block, Section, Table, Text, cell, draw, file_stem, markdown, write_page
from .plot_style import ANGSTROM, FORCE_UNIT
from .plots import learning_curves, parity
from .run_files import MADE_BY, RUN_FILES, Evaluation, Run, read_run


DISAGREEMENT = (
    0.01  # of the MAE: predictions.npz is written in single precision, so it is never exact
)


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
    """Write report.html, which loads nothing from anywhere, and pictures/*.png and *.svg beside it.

    runs: name -> run folder with metrics.jsonl, evaluation.json and predictions.npz.
    reweighting: names of the runs before and after; by default the two runs in their order if there are two.
    fewshot, model_card, notes: fewshot.json and two Markdown files; a section without its file says so.
    Returns: the path of the page.
    Raises: FileNotFoundError that names a missing file and the command that writes it; ValueError for a
    broken file, no runs, two runs with one file name, or an unknown name in reweighting.
    """
    if not runs:
        raise ValueError("a report needs at least one run: runs={name: folder}")
    if len({file_stem(name) for name in runs}) < len(runs):
        raise ValueError(
            f"the names {', '.join(runs)} differ only in characters that file names cannot have"
        )
    out_dir = Path(out_dir)
    loaded = {name: read_run(name, Path(folder)) for name, folder in runs.items()}
    pair = _pair(loaded, reweighting)
    everything = list(loaded.values())
    sections = [
        _headline_section(everything),
        reweighting_section(pair, out_dir),
        element_section(everything, out_dir, with_absolute=pair is None or len(everything) > 2),
        _learning_section(everything, out_dir),
        _parity_section(everything, out_dir),
        few_shot_section(fewshot, out_dir),
        _document_section("Model card", model_card, folded="Show the card"),
        _document_section("Notes", notes),
        _input_section(everything, [fewshot, model_card, notes]),
    ]
    return write_page(out_dir / "report.html", title, sections)


def _pair(runs: dict[str, Run], names: tuple[str, str] | None) -> tuple[Run, Run] | None:
    """The runs before and after reweighting."""
    if names is None:
        first, *rest = runs
        names = (first, rest[0]) if len(rest) == 1 else None
    unknown = [name for name in names or () if name not in runs]
    if unknown:
        raise ValueError(f"reweighting names {unknown[0]!r}, but the runs are {', '.join(runs)}")
    return (runs[names[0]], runs[names[1]]) if names else None


def _headline_section(runs: list[Run]) -> Section:
    evaluations = [run.evaluation for run in runs]
    quantities = {
        "split": lambda e: e.split,
        "structures": lambda e: f"{e.num_structures:,}",
        "atoms": lambda e: f"{e.num_atoms:,}",
        f"force MAE ({FORCE_UNIT})": lambda e: cell(e.force_mae),
        f"force RMS of the labels ({FORCE_UNIT})": lambda e: cell(e.force_rms),
        "force MAE / RMS (%)": lambda e: cell(e.relative_force_mae, 100),
        "energy MAE (meV/atom)": lambda e: cell(e.energy_mae_per_atom, 1000),
        f"stress MAE (meV/{ANGSTROM}\u00b3)": lambda e: cell(e.stress_mae, 1000),
        f"mean over elements, force MAE ({FORCE_UNIT})": lambda e: cell(
            e.mean_over_elements_force_mae
        ),
        f"worst decile of elements, force MAE ({FORCE_UNIT})": lambda e: cell(
            e.worst_decile_force_mae
        ),
        f"worst element, force MAE ({FORCE_UNIT})": _worst_element,
    }
    rows = [[label, *(quantity(e) for e in evaluations)] for label, quantity in quantities.items()]
    blocks: list[Block] = [text for run in runs for text in _disagreements(run)]
    blocks.append(
        Table("Errors (force errors are per component)", ["", *(run.name for run in runs)], rows)
    )
    blocks.append(_level_table(runs))
    return Section("Headline figures", blocks)


def _worst_element(evaluation: Evaluation) -> str:
    name = f"{evaluation.worst_element}: " if evaluation.worst_element else ""
    return name + cell(evaluation.worst_element_force_mae)


def _disagreements(run: Run) -> list[Text]:
    """evaluation.json and predictions.npz of one folder must come from one evaluation."""
    p, e = run.predictions, run.evaluation
    pairs = {
        "energy MAE (eV/atom)": (
            p.predicted_energy_per_atom - p.reference_energy_per_atom,
            e.energy_mae_per_atom,
        ),
        f"force MAE ({FORCE_UNIT})": (p.predicted_forces - p.reference_forces, e.force_mae),
    }
    texts = []
    for label, (difference, stated) in pairs.items():
        error = np.abs(difference[np.isfinite(difference)].astype(float))
        if stated and error.size and abs(error.mean() - stated) > DISAGREEMENT * stated:
            text = (
                f"{run.name}: {label} is {cell(error.mean())} in predictions.npz, but {cell(stated)} in "
                "evaluation.json. They come from different evaluations: make both again."
            )
            texts.append(Text(text, warning=True))
    return texts


def _level_table(runs: list[Run]) -> Table:
    rows = [
        [
            run.name,
            level,
            f"{errors.num_structures:,}",
            cell(errors.force_mae),
            cell(errors.force_rms),
            cell(errors.relative_force_mae, 100),
            cell(errors.energy_mae_per_atom, 1000),
        ]
        for run in runs
        for level, errors in run.evaluation.levels.items()
    ]
    header = [
        "run",
        "level of theory",
        "structures",
        f"force MAE ({FORCE_UNIT})",
        f"force RMS ({FORCE_UNIT})",
    ]
    return Table("By level of theory", [*header, "MAE / RMS (%)", "energy MAE (meV/atom)"], rows)


def _learning_section(runs: list[Run], out_dir: Path) -> Section:
    figure = learning_curves({run.name: run.metrics for run in runs})
    picture = draw(
        figure,
        out_dir,
        "learning-curves",
        "Training loss and validation errors over optimizer steps",
    )
    rows = []
    for run in runs:
        metrics, steps = run.metrics, run.metrics.steps
        end = max(1, len(steps["loss"]) // 20)
        rates = [
            np.nanmedian(steps[name])
            for name in ("structures_per_s", "edges_per_s", "data_wait_share")
        ]
        row = [run.name, f"{metrics.last_step:,}", cell(float(np.nanmedian(steps["loss"][-end:])))]
        row += [
            cell(metrics.structures_seen),
            cell(metrics.seconds),
            cell(rates[0]),
            cell(rates[1]),
        ]
        rows.append([*row, cell(rates[2], 100)])
    header = ["run", "steps", "loss at the end", "structures seen", "time in steps (s)"]
    header += ["structures/s", "edges/s", "waiting for data (%)"]
    caption = "Rates are medians over the steps; the loss is the median of the last twentieth"
    return Section("Learning curves", [picture, Table(caption, header, rows)])


def _parity_section(runs: list[Run], out_dir: Path) -> Section:
    pictures = []
    for run in runs:
        figure = parity(run.predictions, run.evaluation, run.name)
        alt = f"Predicted against reference energies and forces of {run.name}"
        pictures.append(draw(figure, out_dir, f"parity-{file_stem(run.name)}", alt))
    return Section("Parity", pictures)


def _document_section(heading: str, path: Path | None, folded: str = "") -> Section:
    if path is None:
        return Section(heading, [Text("Left out: no Markdown file was given.")])
    return Section(heading, [markdown(Path(path), folded)])


def _input_section(runs: list[Run], others: list[Path | None]) -> Section:
    """What the page was made from, so that a mailed page can be traced to its files."""
    files = [(run.name, run.folder / name) for run in runs for name in RUN_FILES]
    files += [("", Path(path)) for path in others if path is not None]
    rows = [
        [p.name, run, MADE_BY.get(p.name, ""), f"{p.stat().st_size:,}", _digest(p)]
        for run, p in files
    ]
    header = ["file", "run", "written by", "bytes", "SHA-256 (start)"]
    return Section("Inputs", [Table("Files that this page was made from", header, rows)])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
