"""The page that follows a run, and the loggers: progress bar, TensorBoard, W&B."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.core.rich_console import Console
from evenfield.core.settings import SettingsError, load_settings
from evenfield.pretrain.callbacks.metrics import LoggingConfig, ProgressBar
from evenfield.pretrain.checkpoints.run_folder import files_of_run
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.loop.trainer import StepReport
from evenfield.pretrain.monitor.run_view import NoRunError, RunView
from evenfield.pretrain.monitor.watch import WatchConfig, clock, watch, write_watch_page
from evenfield.pretrain.run import pretrain


@pytest.fixture(scope="module")
def finished(data_set, tmp_path_factory) -> PretrainConfig:
    """30 steps with validations at 10, 20 and 30, and TensorBoard's files."""
    config = PretrainConfig(
        data=str(data_set),
        out=str(tmp_path_factory.mktemp("runs") / "watched <b>"),
        max_steps=30,
        evaluate_every=10,
        model={
            "channels": 4,
            "l_max": 1,
            "num_layers": 1,
            "readout_size": 8,
            "radial_hidden": 8,
            "cutoff": 4.0,
        },
        stream={"edge_budget": 1500, "window_blocks": 3},
        schedule={"warmup_steps": 5},
        logging={"tensorboard": True},
    )
    pretrain(config, quiet=True)
    return config


def test_a_page_of_the_user_is_not_drawn_over(finished):
    page = Path(finished.out) / "watch.html"
    page.write_text("mine")
    console = Console(file=io.StringIO())
    with pytest.raises(DestinationError, match="rename that file"):
        watch(page.parent, WatchConfig(), console)
    assert page.read_text() == "mine"
    # nor removed with the run
    assert not files_of_run(page.parent)(page.name)

    page.unlink()
    assert watch(page.parent, WatchConfig(), console) == page
    assert watch(page.parent, WatchConfig(), console) == page
    assert files_of_run(page.parent)(page.name)


def write_rows(out: Path, rows: list[dict]) -> Path:
    """A run folder with these metrics, of 100 steps."""
    out.mkdir(parents=True)
    (out / "config.yaml").write_text("max_steps: 100\n")
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def step(number: int, **changes: object) -> dict:
    row = {"event": "step", "step": number, "epoch": 0, "loss": 2.0 / number, "learning_rate": 1e-3}
    speed = {
        "structures_per_s": 50.0,
        "edges_per_s": 5000.0,
        "data_wait_share": 0.02,
        "memory_gib": 0.5,
    }
    return row | speed | {"gradient_norm": 1.0, "seconds": 2.0} | changes


# --- the page


def test_page_of_a_finished_run(finished):
    shown = CliRunner().invoke(app, ["pretrain", "watch", finished.out])
    assert shown.exit_code == 0 and "step 30 of 30, ended" in shown.output
    page = (Path(finished.out) / "watch.html").read_text()
    assert "watched &lt;b&gt;" in page and "watched <b>" not in page
    assert "30 of 30" in page and "refresh" not in page
    assert page.count("data:image/png;base64,") == 2  # curves and the periodic table
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # it loads nothing
    rows = [
        json.loads(line) for line in (Path(finished.out) / "metrics.jsonl").read_text().splitlines()
    ]
    errors = [row for row in rows if row["event"] == "evaluation"][-1]["per_element"]
    row = r'<tr><th scope="row">(\w+)</th><td>\d+</td><td>\d+</td><td>([\d.]+)</td>'
    rows = re.findall(row, page)
    assert [float(mae) for _, mae in rows] == sorted((float(mae) for _, mae in rows), reverse=True)
    assert {
        symbol: pytest.approx(row["force_mae"], rel=0.01) for symbol, row in errors.items()
    } == {symbol: float(mae) for symbol, mae in rows}


def test_page_of_a_run_that_goes_on_reloads_itself_and_tells_time_and_remarks(tmp_path):
    bad = step(12, loss=None, gradient_norm=None, bad_structures=["evil <1>", "s2"])
    out = write_rows(
        tmp_path / "run", [*(step(k) for k in range(1, 12)), bad, step(13, note="weights set back")]
    )
    page = write_watch_page(RunView.read(out), every=7.0).read_text()
    assert '<meta http-equiv="refresh" content="7">' in page and "<span>training</span>" in page
    assert "2 min 54 s" in page  # 87 steps of 2 s
    assert "step 13: weights set back" in page
    assert "step 12: loss or gradient not finite, left out; structures: evil &lt;1&gt;, s2" in page
    assert page.count("data:image/png;base64,") == 1


def test_page_before_the_first_step_and_with_a_line_in_the_writing(tmp_path):
    out = write_rows(tmp_path / "run", [])
    assert "<span>starting</span>" in write_watch_page(RunView.read(out), 5.0).read_text()
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(1)) + "\n" + '{"event": "st')
    assert RunView.read(out).step == 1


def test_state_of_a_run_that_says_nothing_and_of_one_that_hung(tmp_path):
    out = write_rows(tmp_path / "run", [step(1), step(2)])
    assert RunView.read(out).state == "training"
    long_ago = time.time() - 61
    os.utime(out / "metrics.jsonl", (long_ago, long_ago))
    assert RunView.read(out).state.startswith("silent")
    slow = write_rows(tmp_path / "slow", [step(1, seconds=10.0)])
    os.utime(slow / "metrics.jsonl", (long_ago, long_ago))
    assert RunView.read(slow).state == "training"
    (out / "hang-rank-1.txt").write_text("Stacks below mean: ...\n")
    assert RunView.read(out).state.startswith("silent")
    (out / "hang-rank-1.txt").write_text("Stacks below mean: ...\nTimeout (0:30:00)!\n")
    assert RunView.read(out).state == "a rank hung and was ended"


def test_folder_without_a_run_is_refused_and_so_is_no_folder(tmp_path):
    with pytest.raises(
        NoRunError, match=r"holds no run: name the `out` of an `evenfield pretrain`"
    ):
        RunView.read(tmp_path)
    shown = CliRunner().invoke(app, ["pretrain", "watch"])
    assert shown.exit_code == 2 and "Missing argument" in shown.output


def test_clock():
    assert [clock(s) for s in (0, 59.9, 200, 3600, 18600, 183600)] == [
        *("0 s", "59 s", "3 min 20 s", "1 h 0 min", "5 h 10 min", "2 d 3 h"),
    ]
    assert clock(float("nan")) == "?"


# --- loggers


def test_progress_bar_shows_speed_wait_and_memory():
    bar = ProgressBar(Console(file=io.StringIO()), max_steps=10, start_step=0)
    bar.on_report(None, StepReport(1, 0, 2.0, 1e-3, 10, 100, 0.1, 0.5))
    figures = bar._bar.tasks[0].fields["figures"]
    bar.close()
    assert re.fullmatch(
        r"loss 2\.000  20 structures/s  200 edges/s  data wait 20%  \d+\.\d GiB", figures
    )


def test_tensorboard_has_every_step_and_validation_once_also_after_a_resume(finished):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    longer = finished.model_copy(update={"max_steps": 33})
    pretrain(longer, "auto", quiet=True)
    events = event_accumulator.EventAccumulator(str(Path(finished.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 34))
    assert [e.step for e in events.Scalars("valid/force_mae")] == [10, 20, 30]
    rows = [
        json.loads(line) for line in (Path(finished.out) / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)


def test_wandb_gets_the_same_figures_and_the_same_id_after_a_resume(run_config, monkeypatch):
    """The package itself is not needed: what is called is its public `init`, `log` and `finish`."""
    started, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append(("finished", None))

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.init = lambda **settings: started.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    settings = {"logging": {"wandb_project": "metals"}, "evaluate_every": 2}
    pretrain(run_config(max_steps=2, **settings), quiet=True)
    pretrain(run_config(max_steps=3, **settings), "auto", quiet=True)
    assert [s["project"] for s in started] == ["metals", "metals"] and started[0]["id"] == started[
        1
    ]["id"]
    names = [str(name) for name, _ in logged]
    assert sorted(names) == ["1", "2", "3", "finished", "finished"]
    assert any("valid/force_mae" in values for _, values in logged if values)


def test_logger_that_is_not_installed_is_refused_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        SettingsError, match=r"wandb_project: wandb is not installed: pip install wandb"
    ):
        load_settings(LoggingConfig, overrides=["wandb_project=mine"])
