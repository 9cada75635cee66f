"""The data card of a corpus: its levels of theory and sources, with licences and citations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..convert.finish import prefix_of
from ..sources.label_tally import from_json, label_report
from ..structure import SPLITS


def data_card(info: dict[str, Any]) -> str:
    """The text of data_card.md, from the content of dataset_info.json."""
    blocks = [f"# {info['source']['file']}"]
    if info["description"]:
        blocks.append(info["description"])
    blocks.append(f"Licences of the sources: {info['licence']}.")
    if not info["publishable"]:
        closed = [source["name"] for source in info["sources"] if not source["publishable"]]
        blocks.append(
            "**A model that was trained on this corpus cannot be published**, because of the "
            f"licences of {', '.join(closed)}."
        )

    blocks += ["## Levels of theory", _levels(info)]
    blocks += ["## Sources", _sources(info)]
    blocks += ["## Labels", _labels(info)]
    faults = [
        f"- {source['name']}: {source['known_faults']}"
        for source in info["sources"]
        if source["known_faults"]
    ]
    if faults:
        blocks += ["## Known faults", "\n".join(faults)]
    blocks += ["## Splits", _splits(info)]
    credit = attributions(info["sources"])
    if credit:
        blocks += ["## Attribution", "\n".join(f"- {line}" for line in credit)]
    return "\n\n".join(blocks) + "\n"


def attributions(sources: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each source whose licence requires attribution.

    sources: entries of `sources` in dataset_info.json.
    """
    lines = []
    for source in sources:
        if source["attribution"]:
            where = f", {source['url']}" if source["url"] else ""
            lines.append(f"{source['name']}: {source['citation']} ({source['licence']}{where})")
    return lines


def table_of(titles: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    # a bar inside a cell would end the cell
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _levels(info: dict[str, Any]) -> str:
    rows = []
    for level in info["levels_of_theory"]:
        counts = dict.fromkeys(SPLITS, 0)
        names = []
        for source in info["sources"]:
            own = source["levels_of_theory"].get(level)
            if own is not None:
                names.append(source["name"])
                counts = {split: counts[split] + own[split] for split in SPLITS}
        details = info["level_details"].get(level, "only its name is known")
        rows.append([level, details, *map(str, counts.values()), ", ".join(names)])
    return table_of(["level of theory", "how it was computed", *SPLITS, "sources"], rows)


def _sources(info: dict[str, Any]) -> str:
    rows = []
    for source in info["sources"]:
        total = sum(sum(counts.values()) for counts in source["levels_of_theory"].values())
        levels = ", ".join(source["levels_of_theory"])
        name = f"[{source['name']}]({source['url']})" if source["url"] else source["name"]
        licence = source["licence"]
        rows.append([name, str(total), levels, licence, source["citation"] or "none stated"])
    return table_of(["source", "structures", "levels of theory", "licence", "citation"], rows)


def _labels(info: dict[str, Any]) -> str:
    """List the labels read from each source, and unread columns that look like labels."""
    lines = []
    for source in info["sources"]:
        for line in label_report(from_json(source["labels"]), prefix_of(source)):
            lines.append(f"- {source['name']}: {line}")
    return "\n".join(lines)


def _splits(info: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in info["num_structures"].items())
    shared = info["splits"].get("between_sources")
    text = f"{counts}. {info['splits']['stated']} splits are those that the sources state."
    if shared is None:
        return text
    text += (
        f" {shared['materials']} materials are in more than one source, with "
        f"{shared['structures']} structures: {shared['moved']} of them were moved so that each "
        f"material is on one side, and {shared['dropped_from_training']} were dropped from "
        "training, because another source holds their material out."
    )
    if shared["still_on_two_sides"]:
        text += f" {shared['still_on_two_sides']} materials are still on two sides."
    return text
