"""The card agrees with the records: in the hub's metadata, in its text, and in its pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread

from evenfield import model_zoo
from evenfield.core.numbers import table_cell
from evenfield.model_zoo.evaluation.predictions import Predictions
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.zoo.named_models import SHIPPED

from small_models import small_model


# key of evaluation.json -> name of the figure on the hub
FIGURES = {
    "energy_mae_per_atom": "Energy MAE (eV/atom)",
    "force_mae": "Force MAE (eV/A)",
    "stress_mae": "Stress MAE (eV/A^3)",
}


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Two structures at PBE, one at EMT; an energy and a stress are missing."""
    rng = np.random.default_rng(0)
    forces = rng.normal(0, 1, (9, 3, 2))
    energy = rng.normal(0, 1, (3, 2))
    energy[1, 0] = np.nan
    stress = np.full((3, 3, 3, 2), np.nan)
    stress[0] = 0.01
    return Predictions(
        atomic_numbers=np.array([29] * 6 + [79] * 3),
        structure_index=np.repeat(np.arange(3), 3),
        level_index=np.array([0, 0, 1]),
        level_names=["PBE", "EMT"],
        num_atoms=np.array([3, 3, 3]),
        pairs={"energy": energy, "forces": forces, "stress": stress},
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, predictions: Predictions) -> Path:
    """A model with errors, pictures and everything that a record can hold."""
    folder = small_model(tmp_path_factory.mktemp("card") / "model")
    potential, record = model_zoo.load_model(folder)
    facts = {
        "description": "For copper: a test.",
        "citation": "A. Author, 2026",
        "level_details": {"PBE": "plane waves, 600 eV"},
        "base_model": "somebody/metals@0123abcd",
        "training": {"seconds": 90.0, "ranks": 2, "device": "cpu", "config": {"max_steps": 1200}},
        "versions": {"torch": "2.13.0"},
    }
    evaluation = summarise(predictions, "test", {"Cu": 20, "Au": 3})
    return model_zoo.save_model(
        folder,
        potential,
        record.model_copy(update=facts),
        evaluation,
        predictions=predictions,
    )


def test_metadata_as_the_hubs_client_parses_it(evaluated: Path) -> None:
    data = ModelCard.load(evaluated / "README.md").data
    evaluation = json.loads((evaluated / "evaluation.json").read_text())
    assert data.license == "apache-2.0"
    assert data.library_name == "evenfield"
    assert data.pipeline_tag == "graph-ml"
    assert data.base_model == "somebody/metals"
    assert data.base_model_relation == "finetune"
    assert data.model_name == "copper"

    expected = {}
    tables = {"all levels of theory": evaluation, **evaluation["levels"]}
    for where, table in tables.items():
        for key, figure in FIGURES.items():
            if table.get(key) is not None:
                expected[where, figure] = table[key]
    found = {}
    for result in data.eval_results:
        found[result.dataset_config, result.metric_name] = result.metric_value
        assert result.dataset_split == "test"
    assert found == expected
    assert len(found) > 7

    mlip = data.to_dict()["mlip"]
    assert mlip["num_elements"] == 2
    assert mlip["training_data"][0]["licence"] == "CC0-1.0"


def test_a_reader_finds_every_record(evaluated: Path) -> None:
    text = ModelCard.load(evaluated / "README.md").text
    gold = model_zoo.load(evaluated).evaluation.per_element["Au"]
    for part in (
        "For copper: a test.",
        "| PBE | plane waves, 600 eV | 1 | Cu |",
        "| EMT | only its name is known | 2 | Cu Au |",
        "Seen in fewer than 10 training structures, use with care: Au.",
        "| metals | 23 | CC0-1.0 | `0000000000000000` |",
        f"| Au | 3 | 3 | {table_cell(gold.energy_mae_per_atom)} | {table_cell(gold.force_mae)} |",
        "Cu -1234.568, Au -1234.568",
        "| wall time | 1.5 minutes |",
        "| processes | 2 |",
        "| optimizer steps | 1,200 |",
        "| torch | 2.13.0 |",
        "Fine-tuned from `somebody/metals@0123abcd`.",
        "A. Author, 2026",
        "![predicted against reference energies and forces](parity.png)",
    ):
        assert part in text, part
    assert "nan" not in text.lower().replace("finance", "")


@pytest.mark.parametrize("name", ["coverage.png", "element_errors.png", "parity.png"])
def test_pictures_are_listed_shown_and_drawn(evaluated: Path, name: str) -> None:
    assert f"]({name})" in (evaluated / "README.md").read_text()
    picture = imread(evaluated / name)
    assert picture.shape[0] > 250
    assert picture.shape[1] > 500
    # more colours than a white page has
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    assert model_zoo.load(evaluated).attachments[name] == (evaluated / name).read_bytes()
    assert (evaluated / name).stat().st_size < 150_000


@pytest.mark.pictures
def test_the_same_records_give_the_same_card(
    evaluated: Path, predictions: Predictions, tmp_path: Path
) -> None:
    first = model_zoo.load(evaluated)
    model_zoo.save_model(
        tmp_path / "again",
        first.potential,
        first.record,
        first.evaluation,
        predictions=predictions,
    )
    for path in evaluated.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_model_without_evaluation(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "No errors on held-out structures were recorded." in text
    assert ".png" not in text and not list(folder.glob("*.png"))
    assert ModelCard(text).data.eval_results is None


def test_card_shows_what_was_forgotten(tmp_path: Path) -> None:
    """From forgetting.json of a fine-tuning; other content under that name does no harm."""
    folder = small_model(tmp_path / "model")
    assert "forgot" not in (folder / "README.md").read_text()
    rows = [
        {
            "kind": "pairs",
            "num_structures": 8,
            "energy_before": 0.0,
            "energy_after": 0.0123,
            "force_before": 0.0,
            "force_after": 0.456,
        },
        {
            "kind": "pretraining samples",
            "num_structures": 100,
            "energy_before": 0.05,
            "energy_after": None,
        },
    ]
    attach(folder, {"forgetting.json": json.dumps(rows).encode()})
    card = (folder / "README.md").read_text()
    assert "| pairs | 8 | 0 | 12.3 | 0 | 0.456 |" in card
    assert "| pretraining samples | 100 | 50.0 | - | - | - |" in card
    for other in (b"not JSON", b"3", b'[1, {"kin": 2}]'):
        attach(folder, {"forgetting.json": other})
        assert "forgot" not in (folder / "README.md").read_text()
    assert model_zoo.load(folder).attachments["forgetting.json"] == other


def run_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Run the example of a card as it is printed, in the folder of the card; the energy."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(snippet, names)
    return float(names["atoms"].get_potential_energy())


@pytest.mark.parametrize("default", ["PBE", "EMT", None])
def test_example_runs_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str | None
) -> None:
    folder = small_model(tmp_path / "model")
    potential, record = model_zoo.load_model(folder)
    stated = record.model_copy(
        update={"default_level": default, "elements": {"EMT": ["Au"], "PBE": ["Cu"]}}
    )
    model_zoo.save_model(folder, potential, stated)
    assert np.isfinite(run_snippet(folder, monkeypatch))


def test_example_of_the_shipped_model_runs_as_it_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert np.isfinite(run_snippet(SHIPPED / "evenfield-s", monkeypatch))
