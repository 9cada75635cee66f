"""Check the Markdown files: links resolve, named files exist, commands in shell blocks exist.

    python docs/check_links.py [ROOT]

Prints one line for each fault; the exit code is 1 if there is any.  A command exists when
`evenfield` has the subcommand and its options, or when the Makefile has the target; it is not run.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import typer

from evenfield.cli import app


SKIPPED = {"build", "dist", "runs"}
SHELLS = {"bash", "console", "sh", "shell"}
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[a-z]\w*/[\w./*-]+\.(?:py|md|sh|sbatch|yaml|toml|json|png|j2)")
LINK = re.compile(r"\]\(<?([^)>\s]+)|(?:src|href)=\"([^\"]+)\"")


def faults(root: Path) -> list[str]:
    """Faults in the Markdown files under `root`, as `file: fault`."""
    found = []
    for path in markdown_files(root):
        text = path.read_text(encoding="utf-8")
        wrong = [*link_faults(path, text), *path_faults(root, text), *command_faults(root, text)]
        found += [f"{path.relative_to(root)}: {fault}" for fault in wrong]
    return found


def markdown_files(root: Path) -> list[Path]:
    """All Markdown files except those in hidden folders and in the output of builds and runs."""
    paths = sorted(root.rglob("*.md"))
    return [
        p
        for p in paths
        if not any(s.startswith(".") or s in SKIPPED for s in p.relative_to(root).parts)
    ]


def link_faults(path: Path, text: str) -> Iterator[str]:
    """Find links to files or headings that do not exist."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for match in LINK.finditer(prose):
        link = match[1] or match[2]
        if re.match(r"\w+:", link):  # https:, mailto:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / unquote(name) if name else path
        if not target.exists():
            yield f"link to {link}: no such file"
        elif (
            anchor
            and target.suffix == ".md"
            and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            yield f"link to {link}: no such heading"


def path_faults(root: Path, text: str) -> Iterator[str]:
    """Find files of the repository that the text names in backquotes and that do not exist."""
    for span in re.findall(r"`([^`\n]+)`", text):
        for word in span.split():
            name = word.partition("::")[0]
            folder = name.partition("/")[0]
            # files of a run are only there after the run
            if folder in SKIPPED or not FILE.fullmatch(name) or not (root / folder).is_dir():
                continue
            if not any(root.glob(name)):
                yield f"{name}: no such file"


def anchors(text: str) -> set[str]:
    """Anchors of the headings as GitHub makes them: lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_faults(root: Path, text: str) -> Iterator[str]:
    """Find commands in shell blocks that neither the console script nor the Makefile knows."""
    for match in FENCE.finditer(text):
        if match[1] not in SHELLS:
            continue
        for line in match[2].replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            place = next(
                (k for k, w in enumerate(words) if w in ("evenfield", "evenfield.cli", "make")),
                None,
            )
            if place is None:
                continue
            problem = make_problem(root, words[place + 1 :]) if words[place] == "make" else None
            problem = problem or (
                console_problem(words[place + 1 :]) if words[place] != "make" else None
            )
            if problem:
                yield f"'{line.strip()}': {problem}"


def make_problem(root: Path, words: list[str]) -> str | None:
    """What is wrong with the arguments of `make`; None if nothing is."""
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    unknown = [w for w in words if "=" not in w and not w.startswith("-") and w not in targets]
    return f"the Makefile has no target {unknown[0]}" if unknown else None


def console_problem(words: list[str]) -> str | None:
    """What is wrong with the arguments of `evenfield`: an unknown subcommand or option."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands") and words:
        default = getattr(command, "default_command", None)
        if words[0].startswith("-") and default is None:
            break
        context = command.make_context(command.name, [], resilient_parsing=True)
        # a group with a default command takes any other word as an argument of that command
        is_named = default is None or words[0] in command.list_commands(context)
        name = words.pop(0) if is_named else default
        subcommand = command.get_command(context, name)
        if subcommand is None:
            return f"{command.name or 'evenfield'} has no command {name}"
        command = subcommand
    known = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    options = (
        w.partition("=")[0] for w in words if w.startswith("-") and not re.match(r"-\.?\d", w)
    )
    unknown = [option for option in options if option not in {*known, "--help"}]
    return f"{command.name} has no option {unknown[0]}" if unknown else None


if __name__ == "__main__":
    lines = faults(
        Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    )
    print("\n".join(lines) or "all links and commands exist")
    sys.exit(bool(lines))
