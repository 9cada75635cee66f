"""docs/heads.md: its commands and examples run in order, and heads beat their trivial guess."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from evenfield import cli, model_zoo
from evenfield.model_zoo.engines.direct_forces import NotConservativeWarning
from evenfield.model_zoo.engines.domain_watch import DomainWarning


GUIDE = Path(__file__).parents[3] / "docs" / "heads.md"


def test_the_guide_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    kinds_of_blocks = [kind for kind, _ in blocks]
    assert (kinds_of_blocks.count("python"), kinds_of_blocks.count("bash")) == (9, 6)
    for kind, text in blocks:
        if kind == "python":
            if "torch_sim" in text and find_spec("torch_sim") is None:
                # comes with the extra `engines`
                continue
            with warnings.catch_warnings():
                # the guide says that there are these
                warnings.simplefilter("ignore", NotConservativeWarning)
                warnings.simplefilter("ignore", DomainWarning)
                exec(text, {})
            continue
        for line in text.splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code, capsys.readouterr().err

    heads = model_zoo.load("heads").heads
    kinds = {
        "charges": "mae",
        "dipole": "mae",
        "energy_per_atom": "mae",
        "config_type": "log_loss",
        "towards_heavier": "rmse",
        "bonds": "mae",
        "alpha": "mae",
        "hand": "rmse",
        "direct_forces": "mae",
        "states": "mae",
    }
    assert list(heads) == list(kinds)
    for name, figure in kinds.items():
        about = heads[name].description
        assert about.errors[figure] < 0.9 * about.guess[figure], name
    assert list(model_zoo.load("own-network").heads) == ["dipole"]
    printed = capsys.readouterr().out
    assert "training a network of its own" in printed
    assert "energy_per_atom" in printed and "'molecule'" in printed
