"""The documentation: links, commands and examples in its pages, and doctests of some modules."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from evenfield.diagnostics.check import check_names


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/check_links.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_and_command_is_there(script: ModuleType) -> None:
    assert script.faults(ROOT) == []


def test_faults_are_found(script: ModuleType, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "good.md").write_text(
        "# A heading, with a comma\n"
        "[here](#a-heading-with-a-comma) [web](https://example.org) `[no](link.md)`\n"
        "```bash\nOMP_NUM_THREADS=1 evenfield pretrain data=a \\\n  out=b --resume  # why\n"
        "torchrun -m evenfield.cli pretrain x=1\nmake test PYTHON=python3.12\n```\n"
        "```python\nevenfield.nothing()\n```\n"
    )
    assert script.faults(tmp_path) == []
    (tmp_path / "bad.md").write_text(
        "[gone](gone.md) [no heading](good.md#nothing)\n"
        "```bash\nevenfield pretend\nevenfield data invert\n"
        "$ evenfield pretrain --resumed\nmake tea\n```\n"
    )
    assert script.faults(tmp_path) == [
        "bad.md: link to gone.md: no such file",
        "bad.md: link to good.md#nothing: no such heading",
        "bad.md: 'evenfield pretend': evenfield has no command pretend",
        "bad.md: 'evenfield data invert': data has no command invert",
        "bad.md: '$ evenfield pretrain --resumed': run has no option --resumed",
        "bad.md: 'make tea': the Makefile has no target tea",
    ]


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_examples_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("matcalc", "torch_sim", "metatomic"):
        if library in BLOCKS[number]:
            pytest.importorskip(library, reason="an engine that is not installed")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[number], {})


DOCTESTS = [
    ".".join(("evenfield", *path.relative_to(ROOT).with_suffix("").parts))
    for init in sorted(ROOT.glob("*/py.typed"))
    for path in sorted(init.parent.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", DOCTESTS)
def test_examples_in_docstrings_run(name: str) -> None:
    """By module name: pytest's own collection by path does not know the names of mapped folders."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_enough_examples_in_docstrings() -> None:
    assert len(DOCTESTS) >= 4


def test_every_system_is_listed_once() -> None:
    text = (ROOT / "docs" / "systems.md").read_text()
    served, not_yet = text.split("## Not yet")
    rows = re.findall(r"^\| (\d+) \|", served, re.MULTILINE)
    rows += re.findall(r"(?:\| |, )(\d+) ", not_yet)
    assert sorted(map(int, rows)) == list(range(1, 94))


def test_every_check_has_a_page_that_says_what_to_do() -> None:
    listed = (ROOT / "docs/index.md").read_text()
    names = set(check_names()) - {"physics", "sanity"}
    assert names == {path.stem for path in (ROOT / "docs/checks").glob("*.md")}
    for name in names:
        page = (ROOT / f"docs/checks/{name}.md").read_text()
        assert f"evenfield check {name}" in page
        for question in ("What it means.", "What a bad value does.", "What to do."):
            assert f"**{question}** " in page, (name, question)
        assert f"checks/{name}\n" in listed
