"""The report and its pictures, on made-up run folders."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.core.figures.periodic_table import SYMBOLS
from evenfield.core.seals import sealed
from evenfield.diagnostics.report.element_plots import reweighting_maps
from evenfield.diagnostics.report.report import write_report
from evenfield.diagnostics.report.run_files import ReportError, Run
from evenfield.finetune.few_shot.results import FewShotCurve
from evenfield.model_zoo.evaluation.summary import SummaryError


LEVELS = ("GFN1-xTB", "EMT")


def fake_metrics(path: Path, *, speed: float, steps: int = 200) -> None:
    """Decaying loss with noise, an evaluation every 20 steps."""
    rng = np.random.default_rng(1)
    lines = []
    for step in range(1, steps + 1):
        loss = 2.0 * np.exp(-speed * step / steps) * rng.lognormal(0, 0.25) + 0.05
        lines.append(
            {
                "event": "step",
                "step": step,
                "epoch": 0,
                "loss": loss,
                "learning_rate": 1e-3,
                "structures_per_s": 55.0,
                "edges_per_s": 41000.0,
                "data_wait_share": 0.02,
                "seconds": 0.5,
            }
        )

        if step % 20 == 0:
            mae = 0.6 * np.exp(-speed * step / steps) + 0.04
            lines.append(
                {
                    "event": "evaluation",
                    "step": step,
                    "split": "valid",
                    "num_structures": 50,
                    "num_atoms": 600,
                    "energy_mae_per_atom": 0.2 * mae,
                    "force_mae": mae,
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fake_evaluation(path: Path, *, tail: float) -> dict:
    """Errors that grow with rarity by the exponent `tail`; not all elements are tested."""
    rng = np.random.default_rng(2)
    elements = {}
    for z, symbol in enumerate(SYMBOLS[:86], start=1):
        train = int(20000 / z**1.9) + 2
        rms = float(rng.uniform(0.5, 2.0))
        mae = 0.04 * (20000 / train) ** tail * float(rng.lognormal(0, 0.3))
        # every ninth element has training structures but none to test on
        tested = z % 9 != 5
        elements[symbol] = {
            "num_structures": train // 10 + 1 if tested else 0,
            "num_train_structures": train,
            "num_atoms": 40 if tested else 0,
            "force_mae": mae if tested else None,
            "force_rms": rms if tested else None,
            "energy_mae_per_atom": 0.02,
        }

    errors = {}
    for symbol, element in elements.items():
        if element["force_mae"]:
            errors[symbol] = element["force_mae"]
    ordered = sorted(errors, key=errors.get)
    num_worst = max(1, len(ordered) // 10)
    decile = ordered[-num_worst:]

    level = {
        "force_mae": 0.07,
        "force_rms": 1.3,
        "energy_mae_per_atom": 0.009,
        "num_structures": 300,
    }
    evaluation = {
        "split": "test",
        "num_structures": 600,
        "num_atoms": 9000,
        "energy_mae_per_atom": 0.0123,
        "force_mae": 0.0712,
        "force_rms": 1.21,
        "stress_mae": None,
        "per_element": elements,
        "mean_over_elements_force_mae": float(np.mean(list(errors.values()))),
        "worst_element": ordered[-1],
        "worst_element_force_mae": errors[ordered[-1]],
        "worst_decile_force_mae": float(np.mean([errors[s] for s in decile])),
        "levels": {LEVELS[0]: level, LEVELS[1]: level | {"force_mae": 0.031}},
    }
    path.write_text(json.dumps(sealed(evaluation)))
    return evaluation


def fake_predictions(path: Path, *, num_structures: int = 600, num_atoms: int = 9000) -> None:
    """Errors of the size that fake_evaluation claims."""
    rng = np.random.default_rng(3)
    # two thirds at the first level; the second lies 2 eV/atom higher
    level = np.arange(num_structures) % 3 // 2
    energy = rng.normal(-3, 0.8, num_structures) + 2 * level
    # heavy tails, as real forces have
    forces = rng.laplace(0, 0.85, (num_atoms, 3))
    np.savez(
        path,
        reference_energy_per_atom=energy,
        predicted_energy_per_atom=energy + _with_mae(rng.normal(size=num_structures), 0.0123),
        reference_forces=forces,
        predicted_forces=forces + _with_mae(rng.normal(size=forces.shape), 0.0712),
        level_index=level,
        level_names=np.array(LEVELS),
    )


def _with_mae(errors: np.ndarray, mae: float) -> np.ndarray:
    return errors * mae / np.abs(errors).mean()


def fake_run(folder: Path, *, speed: float = 3.0, tail: float = 0.3) -> Path:
    """A run folder with the three files that a report needs."""
    folder.mkdir(parents=True)
    fake_metrics(folder / "metrics.jsonl", speed=speed)
    fake_evaluation(folder / "evaluation.json", tail=tail)
    fake_predictions(folder / "predictions.npz")
    return folder


def fake_few_shot(path: Path) -> Path:
    """Power laws with seeds; the refit starts lower than training from scratch."""
    rng = np.random.default_rng(4)
    laws = {
        "pretrained": (0.45, 0),
        "step0": (0.45, 0),
        "refit": (0.3, 0.3),
        "scratch": (1.6, 0.55),
    }
    rows = []
    for strategy, (start, slope) in laws.items():
        counts = [4, 8, 16, 32, 64, 128, 256]
        if strategy == "pretrained":
            counts = [0]
        for count in counts:
            for seed in range(3):
                # `start` is the error with four structures
                mae = start * (max(count, 4) / 4) ** -slope * float(rng.lognormal(0, 0.08))
                rows.append(
                    {
                        "num_structures": count,
                        "strategy": strategy,
                        "seed": seed,
                        "force_mae": mae,
                        "energy_mae_per_atom": 0.2 * mae,
                        "seconds": 1.5 + 0.1 * count,
                    }
                )
    content = {"target": "BO2 polymorphs", "force_rms": 1.9, "rows": rows}
    path.write_text(FewShotCurve.model_validate(content).to_json())
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run without and one with importance weights."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "uniform": fake_run(folder / "a"),
        "beta 0.5": fake_run(folder / "b", speed=3.4, tail=0.2),
    }


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    """The full report with every optional input."""
    folder = tmp_path_factory.mktemp("report")
    card = folder / "card.md"
    notes = folder / "notes.md"
    # a card comes from somebody else: its scripts and pictures must not get into the page
    card.write_text(
        "---\nlicense: x\n---\n# small\n<script>bad()</script> ![x](https://example.org/x.png)\n"
    )
    notes.write_text("```\nevenfield pretrain weights.beta=0.5\n```\n")
    return write_report(
        folder / "out",
        title="uniform & reweighted",
        runs=runs,
        fewshot=fake_few_shot(folder / "fewshot.json"),
        model_card=card,
        notes=notes,
    )


@pytest.fixture
def unsaved_pictures(monkeypatch) -> None:
    """Figures are built but not rendered, which takes most of the time."""
    monkeypatch.setattr("evenfield.diagnostics.report.pictures.save_picture", lambda *args: b"")


def visible_text(page: Path) -> str:
    """The words of the page without tags, one space between them."""
    body = re.sub(r"<style>.*?</style>", " ", page.read_text(), flags=re.DOTALL)
    without_tags = re.sub(r"<[^>]*>", " ", body)
    words = unescape(without_tags).split()
    return " ".join(words)


# --- figures


def test_maps_before_and_after_share_a_scale(runs):
    before, after = (Run.read(name, folder).evaluation for name, folder in runs.items())
    panels = reweighting_maps(before, after, ("a", "b")).axes
    old_bar, new_bar, ratio_bar = (panel.child_axes[0] for panel in panels[:3])
    assert old_bar.get_xlim() == new_bar.get_xlim()
    # the ratio is symmetric about 1
    assert np.prod(ratio_bar.get_xlim()) == pytest.approx(1)

    # a cell's number follows its symbol
    texts = [text.get_text() for text in panels[2].texts]
    ratio = after.per_element["Fe"].force_mae / before.per_element["Fe"].force_mae
    assert texts[texts.index("Fe") + 1] == f"{ratio:.2f}"


# --- files


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "predictions.npz"])
def test_missing_file_is_named_with_its_command(tmp_path, name):
    run = fake_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ReportError, match=rf"{name}: is missing: `evenfield pretrain` writes it"):
        write_report(tmp_path / "out", title="t", runs={"a": run})


def test_broken_evaluation_is_named(tmp_path):
    run = fake_run(tmp_path / "run")
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(SummaryError, match=r"evaluation\.json: not a summary of errors"):
        write_report(tmp_path / "out", title="t", runs={"a": run})


# --- page


def test_pictures_lie_beside_the_page(page):
    pictures = sorted(path.name for path in (page.parent / "pictures").iterdir())
    stems = {Path(name).stem for name in pictures}
    parities = {"parity-uniform", "parity-beta-0-5"}
    assert stems >= {"reweighting", "learning-curves", "few-shot", *parities}
    assert pictures == sorted(f"{stem}{end}" for stem in stems for end in (".png", ".svg"))
    for path in (page.parent / "pictures").iterdir():
        start = path.read_bytes()[:8]
        if path.suffix == ".png":
            assert start == b"\x89PNG\r\n\x1a\n"
        else:
            assert start.startswith(b"<?xml")


def test_page_loads_nothing(page):
    html = page.read_text()
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", html)
    sources = re.findall(r'\ssrc="([^"]*)"', html)
    assert len(sources) == len(list((page.parent / "pictures").glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in sources)

    # the one address left is a link to click on, in the model card
    assert set(re.findall(r'<(\w+)[^>]*="https?:', html)) == {"a"}
    assert "<title>uniform &amp; reweighted</title>" in html
    assert str(page.parent.parent) not in html


def test_page_says_what_the_files_say(page, runs):
    text = visible_text(page)
    for run in runs.values():
        evaluation = json.loads((run / "evaluation.json").read_text())
        worst = evaluation["worst_element"]
        assert f"{worst}: {evaluation['worst_element_force_mae']:.3g}" in text
        assert f"{evaluation['mean_over_elements_force_mae']:.3f}" in text
        iron = evaluation["per_element"]["Fe"]
        counts = f"{iron['num_train_structures']} {iron['num_structures']} 40"
        assert f"Fe {counts} {iron['force_rms']:.2f}" in text

    assert "force MAE / RMS (%) 5.88 5.88" in text
    assert "energy MAE (meV/atom) 12.3 12.3" in text
    assert "evenfield pretrain weights.beta=0.5" in text
    # no doubt about two runs on one test set with equal steps
    assert "different" not in text


def test_one_run_leaves_sections_out_and_says_so(runs, tmp_path, unsaved_pictures):
    text = visible_text(write_report(tmp_path, title="t", runs={"uniform": runs["uniform"]}))
    assert "it needs two runs" in text
    assert "no fewshot.json was given" in text
    assert text.count("no Markdown file was given") == 2


def test_unfair_comparison_is_called_unfair(runs, tmp_path, unsaved_pictures):
    other = fake_run(tmp_path / "other")
    fake_metrics(other / "metrics.jsonl", speed=3.0, steps=40)
    fake_predictions(other / "predictions.npz", num_atoms=100)
    evaluation = json.loads((other / "evaluation.json").read_text())
    evaluation |= {"num_structures": 7, "force_mae": 0.5}
    (other / "evaluation.json").write_text(json.dumps(sealed(evaluation)))

    both = {"a": runs["uniform"], "b": other}
    text = visible_text(write_report(tmp_path, title="t", runs=both))
    assert "evaluated on different structures" in text
    assert "200 and 40 steps" in text
    disagreement = "is 0.0712 in predictions.npz, but 0.500 in evaluation.json"
    assert f"b: force MAE (eV/\u00c5) {disagreement}" in text


def test_run_without_force_labels(tmp_path, unsaved_pictures):
    run = fake_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    elements = evaluation["per_element"].values()
    levels = evaluation["levels"].values()
    for errors in (evaluation, *elements, *levels):
        errors |= {"force_mae": None, "force_rms": None}
    for name in (
        "mean_over_elements_force_mae",
        "worst_element",
        "worst_element_force_mae",
        "worst_decile_force_mae",
    ):
        evaluation[name] = None
    (run / "evaluation.json").write_text(json.dumps(sealed(evaluation)))

    # NaN marks a label that is missing
    arrays = dict(np.load(run / "predictions.npz"))
    arrays["reference_forces"] = arrays["reference_forces"] * np.nan
    np.savez(run / "predictions.npz", **arrays)
    text = visible_text(write_report(tmp_path, title="t", runs={"a": run, "b": run}))
    assert "no element has force errors in both runs" in text


def test_names_are_checked(runs, tmp_path):
    with pytest.raises(ReportError, match="at least one run"):
        write_report(tmp_path, title="t", runs={})
    with pytest.raises(ReportError, match="'late'"):
        write_report(tmp_path, title="t", runs=runs, reweighting=("uniform", "late"))
    with pytest.raises(ReportError, match="differ only"):
        write_report(tmp_path, title="t", runs={"a b": tmp_path, "a-b": tmp_path})


def test_command_replaces_a_report_only_when_asked_to(runs, tmp_path, unsaved_pictures):
    out = tmp_path / "report"
    command = ["report", str(out), f"uniform={runs['uniform']}"]
    assert CliRunner().invoke(app, command).exit_code == 0
    old = '<meta name="generator" content="evenfield">'
    (out / "report.html").write_text(old)

    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, DestinationError)
    assert (out / "report.html").read_text() == old

    # a failure leaves the old page
    broken = ["report", str(out), f"uniform={tmp_path / 'nowhere'}", "--overwrite"]
    assert CliRunner().invoke(app, broken).exit_code == 1
    assert (out / "report.html").read_text() == old

    mine = [out / "notes.md", out / "pictures" / "mine.png"]
    (out / "pictures").mkdir(exist_ok=True)
    for path in mine:
        path.write_text("mine")
    done = CliRunner().invoke(app, [*command, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert (out / "report.html").read_text() != "old"
    assert str(out / "report.html") in done.output.replace("\n", "")


# --- few-shot


def test_savings_are_told_in_words(page):
    text = visible_text(page)
    assert "closed-form refit: reaches the force MAE of training from scratch on 256" in text
    assert "times fewer." in text
    assert "E0 refit only (step 0): does not reach the force MAE" in text
