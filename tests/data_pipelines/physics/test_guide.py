"""docs/long_range.md: its commands and examples run in order."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from evenfield import cli


GUIDE = Path(__file__).parents[3] / "docs" / "long_range.md"


def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchpme")
    pytest.importorskip("torch_dftd")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["python", "bash", "python", "python", "python", "bash", "python"]
    names: dict[str, object] = {}
    for kind, text in blocks:
        if kind == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "D3(BJ) of its own numbers" in printed
    assert "fixed charges" in printed
