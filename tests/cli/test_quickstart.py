"""The quick start keeps what an earlier call made, as long as it is whole."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.cli.quickstart import QuickstartConfig, Step, run_quickstart
from evenfield.data_pipelines.demo import generate


SAMPLE = Path(generate.__file__).with_name("sample") / "demo_sample.extxyz.gz"


class DataAreDoneError(Exception):
    """The first step that needs the data was reached."""


@pytest.mark.parametrize("damaged", ["train-00000.parquet", "census.json", "dataset_info.json"])
def test_damaged_data_are_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
) -> None:
    # the package has a command of the same name
    quickstart = sys.modules[run_quickstart.__module__]
    done = []

    def run(step: Step) -> None:
        done.append(step.output)
        result = CliRunner().invoke(app, step.words)
        assert result.exit_code == 0, result.output

    def stop(steps: list[Step], out: Path) -> None:
        # trainings that have not begun
        assert [(step.damage, step.progress()) for step in steps] == [("", {})] * 2
        raise DataAreDoneError

    monkeypatch.setattr(quickstart, "_run", run)
    monkeypatch.setattr(quickstart, "_run_side_by_side", stop)

    def data_steps() -> list[str]:
        done.clear()
        with pytest.raises(DataAreDoneError):
            run_quickstart(tmp_path, QuickstartConfig(cheap_per_element=1))
        return list(done)

    # the first call refuses a folder that holds something
    monkeypatch.setattr(quickstart, "check_destination", lambda *_, **__: None)
    shutil.copyfile(SAMPLE, tmp_path / "embedded.extxyz.gz")
    shutil.copyfile(SAMPLE, tmp_path / "molecules.extxyz.gz")
    everything = [
        "data/dataset_info.json",
        "data/census.png",
        "cheap/dataset_info.json",
        "molecules/dataset_info.json",
    ]
    assert data_steps() == everything
    assert data_steps() == []

    path = tmp_path / "data" / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    capsys.readouterr()
    assert data_steps() == ["data/dataset_info.json", "data/census.png"]
    assert path.read_bytes() == whole
    assert f"{path} " in capsys.readouterr().out.replace("\n", " ")
    assert data_steps() == []
