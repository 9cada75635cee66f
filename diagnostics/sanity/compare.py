"""Compare two potentials: which figures of their checks got worse?

The figures are those of `evenfield check sanity` and `evenfield check physics`. Each side may be a
folder with stored results, so that nothing is computed twice, a model, or any ASE calculator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from ...core.addresses import local_path
from ...core.errors import EvenfieldError
from ...core.figures.style import STYLE, figure_png, looks
from ...core.files import file_errors
from ...core.numbers import short_number
from ...core.pages.page import Block, Bullets, Picture, Section, Table, Text
from ...core.seals import unsealed
from ...core.settings import SettingsError
from ...model_zoo.package.manifest import MANIFEST
from ..check import VERDICTS, CheckResult, Figure, checked
from ..checks import physics, sanity
from .battery import STRUCTURES_DIGEST, Battery
from .config import SanityConfig


BATTERIES = (Battery("sanity", sanity.BATTERY), Battery("physics", physics.BATTERY, physics.SLOW))

# module:name, such as ase.calculators.emt:EMT
CALCULATOR = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

# A figure got worse or better if its distance from the threshold changed by more than this share of
# the threshold. Another random seed or another machine causes smaller changes.
NOTABLE = 0.1

Verdict = Literal["worse", "better", "alike"]


@dataclass(frozen=True)
class Side:
    """One of the two potentials: its name, the settings of its checks, and their results."""

    name: str
    settings: Mapping[str, Any]
    checks: Mapping[str, CheckResult]

    @classmethod
    def from_folder(cls, folder: Path) -> Side:
        """Read the results that one or both batteries wrote into `folder`.

        Raises EvenfieldError if the folder has no results, damaged results, or results of two
        different potentials.
        """
        parts = []
        for battery in BATTERIES:
            path = folder / battery.file("json")
            if path.is_file():
                parts.append(_read(path))
        if not parts:
            raise EvenfieldError(
                "holds no results of checks",
                file=folder,
                remedy="make them with `evenfield check sanity MODEL --out FOLDER`, or name a "
                "model",
            )
        first = parts[0]
        checks: dict[str, CheckResult] = {}
        for part in parts:
            if part.name != first.name:
                raise EvenfieldError(
                    f"holds results of two potentials, {first.name} and {part.name}",
                    file=folder,
                    remedy="make the checks of each in a folder of its own",
                )
            checks |= part.checks
        return cls(first.name, first.settings, checks)


@dataclass(frozen=True)
class Row:
    """One figure of both sides; None for a side that does not have it."""

    check: str
    name: str
    before: Figure | None
    after: Figure | None

    @property
    def verdict(self) -> Verdict | None:
        """How a figure changed; None if a side lacks it or it has no threshold."""
        if self.before is None or self.after is None or not self.after.is_judged:
            return None
        if self.before.passed != self.after.passed:
            return "better" if self.after.passed else "worse"
        change = _margin(self.after) - _margin(self.before)
        if not np.isfinite(change) or abs(change) <= NOTABLE:
            return "alike"
        return "better" if change > 0 else "worse"

    @property
    def change(self) -> str:
        """Both values as text: `before -> after`."""
        values = [
            "not made" if figure is None else figure.shown_value
            for figure in (self.before, self.after)
        ]
        return f"{values[0]} -> {values[1]}"


@dataclass(frozen=True)
class Comparison:
    """Two sides, and the checks that were made of both."""

    before: Side
    after: Side

    def __post_init__(self) -> None:
        """Raise EvenfieldError if the sides share no check or differ in a relevant setting."""
        if not self.checks:
            raise EvenfieldError(
                f"no check was made of both {self.before.name} and {self.after.name}",
                remedy="make the same checks of both",
            )
        keys = ("suite", "elements", "reference", "temperature", "picoseconds", STRUCTURES_DIGEST)
        for key in keys:
            values = [side.settings.get(key) for side in (self.before, self.after)]
            if values[0] != values[1]:
                raise EvenfieldError(
                    f"the checks were made with {key}={values[0]} and {key}={values[1]}",
                    remedy=f"make both with the same {key}",
                )

    @property
    def checks(self) -> list[str]:
        """Checks that were made of both, in the order of the batteries."""
        return [name for name in self.before.checks if name in self.after.checks]

    @property
    def rows(self) -> list[Row]:
        """All figures of the checks that were made of both."""
        found = []
        for check in self.checks:
            before = {figure.name: figure for figure in self.before.checks[check].figures}
            after = {figure.name: figure for figure in self.after.checks[check].figures}
            for name in before | after:
                found.append(Row(check, name, before.get(name), after.get(name)))
        return found

    def lines(self, verdict: Verdict) -> list[str]:
        """One line of text for each figure with this verdict."""
        return [
            f"{row.check}: {row.name}: {row.change} ({row.after.shown_threshold})"
            for row in self.rows
            if row.verdict == verdict and row.after is not None
        ]

    def sections(self) -> list[Section]:
        """Content of the page: what got worse or better, a picture, verdicts, all figures."""
        verdicts = []
        for check in self.checks:
            verdicts.append(
                [
                    check,
                    *(VERDICTS[side.checks[check].passed] for side in (self.before, self.after)),
                ]
            )
        figures = []
        for row in self.rows:
            both = [
                "" if figure is None else figure.shown_value for figure in (row.before, row.after)
            ]
            threshold = "" if row.after is None else row.after.shown_threshold
            figures.append([f"{row.check}: {row.name}", *both, threshold, row.verdict or ""])

        blocks: list[Block] = []
        for verdict in ("worse", "better"):
            lines = self.lines(verdict)
            blocks.append(Text(f"{len(lines)} of {len(self.rows)} figures got {verdict}."))
            if lines:
                blocks.append(Bullets(lines))
        header = [self.before.name, self.after.name]
        blocks.append(Picture("figures over their thresholds", self.picture()))
        blocks.append(Table("Verdicts", ["check", *header], verdicts, words=True))
        blocks.append(Table("Figures", ["figure", *header, "threshold", "went"], figures))
        return [Section("", blocks)]

    def picture(self) -> bytes:
        """A PNG that shows how far each judged figure is from its threshold, before and after.

        The distance is relative to the threshold. A figure passes above 0; at -1 it misses the
        threshold by the size of the threshold. Values are clipped to the range from -2 to 2.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Drawing

        rows = [row for row in self.rows if row.verdict is not None]
        with rc_context(STYLE):
            drawing = Drawing(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
            axes = drawing.add_subplot()
            places = np.arange(len(rows))[::-1]
            sides = (self.before.name, self.after.name)
            margins = []
            for figures in ([row.before for row in rows], [row.after for row in rows]):
                margins.append([_margin(figure) if figure else np.nan for figure in figures])
            shown = np.clip(np.nan_to_num(np.array(margins), nan=-2.0), -2, 2)  # (2, rows)

            axes.hlines(places, shown[0], shown[1], color="0.6", linewidth=1)
            for values, name, (colour, marker) in zip(shown, sides, looks(), strict=False):
                axes.plot(values, places, marker, color=colour, linestyle="none", label=name)
            axes.axvline(0, color="black", linestyle="--", linewidth=1)
            axes.set_xlim(-2.15, 2.15)
            axes.set_yticks(places, [f"{row.check}: {row.name}" for row in rows], fontsize=8)
            axes.set_xlabel("distance from the threshold over the threshold; right of 0 passes")
            drawing.legend(loc="outside upper center", ncols=2, fontsize=9)
            return figure_png(drawing)


def side_of(
    word: str, level: str | None, settings: SanityConfig, folder_hub: str | None = None
) -> Side:
    """Results for a word of the command line: a folder with results, a model, or a calculator.

    For a model or a calculator, the checks are run here: first sanity, then physics.

    Raises EvenfieldError if the word names none of these, or if `level` is given for a folder with
    results.
    """
    path = local_path(word)
    # a model folder can have a sanity.json too, but it records verdicts without figures
    if path.is_dir() and not (path / MANIFEST).exists():
        if level is not None:
            raise EvenfieldError(
                f"holds results, and was given the level of theory {level}",
                file=word,
                remedy="leave out --level-a and --level-b for folders with results",
            )
        return Side.from_folder(path)

    is_calculator = not path.exists() and CALCULATOR.fullmatch(word) is not None
    model = checked(
        model=None if is_calculator else word,
        calculator=word if is_calculator else None,
        level_of_theory=level,
        folder_hub=folder_hub,
    )
    plan = _plan(settings)
    made = [name for names in plan.values() for name in names]
    settings.refuse_unread(["physics", "sanity", *made])
    with TemporaryDirectory() as folder:
        for battery, names in plan.items():
            battery.run(model, settings.model_copy(update={"checks": names}), Path(folder))
        return Side.from_folder(Path(folder))


def _plan(settings: SanityConfig) -> dict[Battery, list[str]]:
    """Battery -> checks to run: each check is assigned to the first battery that has it.

    Raises SettingsError for an unknown check.
    """
    plan: dict[Battery, list[str]] = {}
    left = None if settings.checks is None else set(settings.checks)
    done: set[str] = set()
    for battery in BATTERIES:
        names = [name for name in battery.checks if name not in done]
        if left is not None:
            names = [name for name in names if name in left]
        done.update(names)
        if names:
            plan[battery] = names
    unknown = sorted((left or set()) - done)
    if unknown:
        known = sorted({name for battery in BATTERIES for name in battery.checks})
        raise SettingsError(
            f"checks: there is no {unknown[0]!r}", remedy=f"choose among {', '.join(known)}"
        )
    return plan


def _margin(figure: Figure) -> float:
    """Distance of a figure from its threshold, relative to the threshold; positive if it passes.

    If the threshold is 0, the distance is in the unit of the figure. NaN for a value of NaN.
    """
    margins = []
    if figure.limit is not None:
        margins.append((figure.limit - figure.value) / (abs(figure.limit) or 1.0))
    if figure.at_least is not None:
        margins.append((figure.value - figure.at_least) / (abs(figure.at_least) or 1.0))
    return min(margins, default=float("nan"))


def _read(path: Path) -> Side:
    """Read the results of one battery; raises EvenfieldError for a damaged file."""
    with file_errors(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        if unsealed(text) is None:
            raise EvenfieldError(
                "does not match its checksum: it is damaged, or was edited",
                file=path,
                remedy="make the checks again in another folder",
            )
        checks = {
            name: CheckResult.from_dict(result, {}) for name, result in content["checks"].items()
        }
        name = f"{content['model']}, {content['level_of_theory']}"
        return Side(name, dict(content["settings"]), checks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvenfieldError(
            f"is not a result of checks ({type(error).__name__}: {error})",
            file=path,
            remedy="name a folder that `evenfield check sanity MODEL --out FOLDER` has written",
        ) from error


def summary(comparison: Comparison) -> list[str]:
    """Lines for the terminal: the figures that got worse, those that got better, and totals."""
    lines = []
    for verdict in ("worse", "better"):
        found = comparison.lines(verdict)
        lines.append(f"{len(found)} figures got {verdict}{':' if found else ''}")
        lines += [f"  {line}" for line in found]
    share = short_number(100 * NOTABLE)
    lines.append(
        f"compared: {comparison.before.name} -> {comparison.after.name}, "
        f"{len(comparison.checks)} checks, {len(comparison.rows)} figures; a figure without a new "
        f"verdict counts if it moved by more than {share} % of its threshold"
    )
    return lines
