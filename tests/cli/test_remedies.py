"""What remedies name exists: options of the commands that can print them, commands, settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer

from evenfield.cli import app
from evenfield.core.settings import Settings
from evenfield.core.settings_table import groups_of
from evenfield.data_pipelines.convert.convert import ConvertConfig
from evenfield.data_pipelines.corpus.config import CorpusConfig
from evenfield.data_pipelines.enrich.enrich import EnrichConfig
from evenfield.diagnostics.check import check_names
from evenfield.diagnostics.sanity.config import SanityConfig
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.few_shot.curve import CurveConfig
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.pretrain.config import PretrainConfig
from evenfield.simulation.dynamics import DynamicsConfig
from evenfield.simulation.learn.config import LearnConfig

from house import ROOT, files


CHECKS = [f"check {name}" for name in check_names()]
# File -> the commands that print its texts about options. A new one is a line here.
PRINTED_BY = {
    "cli/zoo_build.py": ["zoo build"],
    "core/command_line.py": ["data convert", "data corpus", "finetune curve"],
    # all that write to a place without `remedy`
    "core/destination.py": [
        "data generate",
        "data convert",
        "data corpus",
        "data enrich",
        "evaluate",
        "finetune run",
        "finetune curve",
        "finetune head",
        "hub elements",
        "hub export-metatomic",
        "report",
        "simulate",
        "zoo build",
        *CHECKS,
    ],
    "core/workers.py": ["data convert", "data corpus", "data enrich", "data generate"],
    "data_pipelines/convert/convert.py": ["data convert", "data corpus"],
    "diagnostics/check.py": CHECKS,
    "diagnostics/checks/linescan.py": ["check linescan"],
    "diagnostics/checks/noise.py": ["check noise"],
    "diagnostics/checks/sanity.py": ["check sanity"],
    "diagnostics/sanity/battery.py": ["check sanity", "check physics"],
    "diagnostics/sanity/compare.py": ["check compare"],
    "diagnostics/checks/scaling.py": ["check scaling"],
    "diagnostics/checks/baselines.py": ["check baselines"],
    "diagnostics/checks/trust.py": ["check trust", "check baselines"],
    "finetune/few_shot/curve.py": ["finetune curve"],
    "finetune/property_heads/save.py": ["finetune head"],
    "finetune/safety/trust.py": ["finetune attach"],
    "finetune/target.py": ["finetune run"],
    "finetune/zoo_build/build.py": ["zoo build"],
    "model_zoo/hub/hugging_face.py": ["hub pull"],
    "model_zoo/hub/publish.py": ["hub publish"],
    "model_zoo/package/levels.py": ["simulate", "hub export-metatomic", *CHECKS],
    "pretrain/checkpoints/resume.py": ["pretrain run"],
    "pretrain/checkpoints/run_folder.py": ["pretrain run"],
}
# File -> the commands for which it checks a place without a remedy of its own. `check_destination`
# then advises --overwrite.
WRITES = {
    "cli/zoo_build.py": ["zoo build"],
    "data_pipelines/convert/convert.py": ["data convert", "data corpus"],
    "data_pipelines/demo/generate.py": ["data generate"],
    "data_pipelines/enrich/enrich.py": ["data enrich"],
    "diagnostics/check.py": CHECKS,
    "diagnostics/commands.py": ["check compare", "report"],
    "finetune/commands.py": ["finetune run", "finetune curve"],
    "finetune/save.py": ["finetune run", "finetune head"],
    "model_zoo/commands.py": ["hub elements", "hub export-metatomic"],
    "pretrain/commands.py": ["evaluate"],
    "simulation/commands.py": ["simulate"],
}
# of another command, which the remedy names, or of a check of a model alone
OTHERWISE = {
    # `check sanity` is named in the same remedy
    ("model_zoo/hub/publish.py", "--level-of-theory"),
    # raised where --calculator can be given
    ("diagnostics/check.py", "--calculator"),
    # `check baselines` has the same functions, and no such option
    ("diagnostics/checks/trust.py", "--attach"),
}
# of sbatch, in a setting
OF_OTHER_PROGRAMS = {
    ("simulation/learn/array_job.py", "--partition"),
    ("simulation/learn/array_job.py", "--time"),
}
# Room -> the settings whose keys its remedies may name.
SETTINGS: dict[str, list[type[Settings]]] = {
    "data_pipelines": [ConvertConfig, CorpusConfig, EnrichConfig, PretrainConfig],
    "pretrain": [PretrainConfig, ConvertConfig],
    "finetune": [FineTuneConfig, CurveConfig, HeadConfig, ConvertConfig],
    "simulation": [DynamicsConfig, LearnConfig],
    "diagnostics": [SanityConfig],
}
# what looks like a dotted key and is none
NO_KEYS = re.compile(r"\.(json|jsonl|txt|extxyz|safetensors|yaml|png|cif)$|^(ase|model_zoo)\.|\.\.")


@cache
def options() -> dict[str, set[str]]:
    """Command -> its options."""
    found = {}

    def walk(command: Any, words: list[str]) -> None:
        if hasattr(command, "list_commands"):
            for name in command.list_commands(None):
                walk(command.get_command(None, name), [*words, name])
            return
        found[" ".join(words)] = {name for part in command.params for name in part.opts}

    walk(typer.main.get_command(app), [])
    return found


def text_of(node: ast.expr) -> str:
    """The constant parts of an expression of texts."""
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return " ".join(part for part in parts if isinstance(part, str))


def remedies() -> Iterator[tuple[str, str]]:
    """(file, text) of everything that is passed or assigned as a remedy."""
    rooms = ("core", "data_pipelines", "model_zoo", "pretrain", "finetune")
    for path in files(*rooms, "simulation", "diagnostics", "cli"):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("remedy", "elsewhere"):
                yield name, text_of(node.value)
            elif isinstance(node, ast.Assign):
                targets = " ".join(map(ast.unparse, node.targets)).lower()
                if "remedy" in targets or "remedies" in targets:
                    yield name, text_of(node.value)
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("how_to"):
                for part in ast.walk(node):
                    if isinstance(part, ast.Return) and part.value is not None:
                        yield name, text_of(part.value)


def test_remedies_were_found() -> None:
    assert len(list(remedies())) > 200


def test_options_in_remedies_belong_to_the_command_that_prints_them() -> None:
    wrong = []
    for file, text in remedies():
        # a command between backticks has options of its own, see below
        for option in re.findall(r"--[a-z][a-z-]+", re.sub(r"`[^`]*`", "", text)):
            if (file, option) in OF_OTHER_PROGRAMS:
                continue
            if file.endswith("commands.py") or (file, option) in OTHERWISE:
                commands = [name for name in options() if option in options()[name]] or ["none"]
                commands = commands[:1]
            else:
                commands = PRINTED_BY.get(file, ["no command, as PRINTED_BY says"])
            lacking = [name for name in commands if option not in options().get(name, set())]
            if lacking:
                wrong.append(f"{file}: {text!r} names {option}, which {lacking} lack")
    assert not wrong, "\n".join(wrong)


def test_who_advises_to_overwrite_has_the_option() -> None:
    """`learn` advised it, and has no --overwrite."""
    rooms = ("core", "data_pipelines", "model_zoo", "pretrain", "finetune")
    found = set()
    for path in files(*rooms, "simulation", "diagnostics", "cli"):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "check_destination":
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            # whose earlier results are always replaced, or never
            is_asked = given.get("overwrite", "True") not in ("True", "None")
            if is_asked and "remedy" not in given:
                found.add(name)
    unknown = found - set(WRITES)
    assert not unknown, f"which commands write with {unknown}? Name them in WRITES"
    lacking = [
        command
        for name in found
        for command in WRITES[name]
        if "--overwrite" not in options()[command]
    ]
    assert not lacking


def test_commands_in_remedies_exist() -> None:
    wrong = []
    for file, text in remedies():
        for command in re.findall(r"`evenfield ([^`]+)`?", text):
            words = command.split()
            known = [name for name in options() if words[: len(name.split())] == name.split()]
            # the names of commands that can be left out
            known += [
                name for name in ("pretrain run", "finetune run") if words[0] == name.split()[0]
            ]
            used = set(re.findall(r"--[a-z][a-z-]+", command))
            if not known or not any(used <= options()[name] for name in known):
                wrong.append(f"{file}: {command}")
    assert not wrong, "\n".join(wrong)


@cache
def keys_of(room: str) -> set[str]:
    """All keys that remedies of a room may name, and their groups."""
    keys = set()
    for settings in SETTINGS.get(room, []):
        for group in groups_of(settings):
            for row in group.rows:
                parts = row.key.split(".")
                keys |= {".".join(parts[: number + 1]) for number in range(len(parts))}
    return keys


@pytest.mark.parametrize("room", SETTINGS)
def test_settings_in_remedies_exist(room: str) -> None:
    wrong = []
    for file, text in remedies():
        if not file.startswith(room):
            continue
        for key in re.findall(r"(?<![\w/<-])([a-z_]+(?:\.[a-z_]+)+)(?![\w(])", text):
            if NO_KEYS.search(key):
                continue
            # `columns.energy`: the names of labels, levels and splits are the user's
            mapping = key.rpartition(".")[0]
            known = keys_of(room)
            is_known = key in known or mapping in known or f"{mapping}.NAME" in known
            if not is_known:
                wrong.append(f"{file}: {text!r} names {key}")
    assert not wrong, "\n".join(wrong)
