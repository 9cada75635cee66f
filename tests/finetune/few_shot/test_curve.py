"""The few-shot curve: what it computes, that it can be interrupted, and shared among tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.core.locks import LockedError, held
from evenfield.core.seals import sealed
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.finetune.few_shot import curve as curves
from evenfield.finetune.few_shot.curve import Cell, CurveConfig, _share, few_shot_curve
from evenfield.finetune.few_shot.results import FewShotFileError
from evenfield.finetune.run import finetune
from evenfield.finetune.safety.step0 import WrongUnitError
from evenfield.finetune.target import draw
from evenfield.pretrain.run import pretrain


CURVE = CurveConfig(sizes=[2, 6], seeds=[0, 1], scratch_steps=0)


def curve(model, sets, out: Path, config: CurveConfig = CURVE) -> dict:
    return few_shot_curve(model, sets["platinum"], out, config, say=lambda text: None).model_dump()


def no_more(*_: object) -> None:
    raise AssertionError("computed what was there")


def test_curve_has_its_format_and_is_not_computed_twice(model, sets, tmp_path, monkeypatch):
    out = tmp_path / "new" / "fewshot.json"
    content = curve(model, sets, out)
    assert json.loads(out.read_text()) == sealed(content)
    assert set(content) == {"target", "force_rms", "origin", "rows"}
    assert content["target"] == "platinum" and content["force_rms"] > 0
    keys = {
        "num_structures",
        "strategy",
        "seed",
        "force_mae",
        "energy_mae_per_atom",
        "seconds",
        "force_rms",
    }
    assert all(set(row) == keys for row in content["rows"])
    cells = [(row["num_structures"], row["seed"], row["strategy"]) for row in content["rows"]]
    strategies = ("pretrained", "step0", "refit")
    assert cells == [
        (n, seed, strategy) for n in (2, 6) for seed in (0, 1) for strategy in strategies
    ]
    monkeypatch.setattr(curves, "finetune", no_more)
    assert curve(model, sets, out) == content

    # a digit that changes is a row that nobody computed
    text = out.read_text()
    error = str(content["rows"][0]["force_mae"])
    other = error[:-1] + ("1" if error[-1] != "1" else "2")
    out.write_text(text.replace(error, other, 1))
    with pytest.raises(FewShotFileError, match=r"fewshot\.json: does not match its checksum"):
        curve(model, sets, out)


def test_two_processes_do_not_write_one_file(model, sets, tmp_path):
    out = tmp_path / "fewshot.json"
    with (
        held(tmp_path / ".fewshot.json.lock", LockedError("")),
        pytest.raises(LockedError, match=r"fewshot\.json: another process"),
    ):
        curve(model, sets, out)
    assert not out.exists()


def test_interrupted_curve_goes_on(model, sets, tmp_path, monkeypatch):
    out, done = tmp_path / "fewshot.json", []

    def some(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(finetune(*args))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(curves, "finetune", some)
        with pytest.raises(KeyboardInterrupt):
            curve(model, sets, out)
    first = json.loads(out.read_text())["rows"]
    assert [(row["num_structures"], row["seed"]) for row in first[::3]] == [(2, 0), (2, 1)]
    whole = curve(model, sets, out)
    assert whole["rows"][:6] == first and len(whole["rows"]) == 12
    assert whole["force_rms"] == pytest.approx(done[0].final.errors.force_rms)


def test_curve_of_other_settings_is_refused_and_with_overwrite_renamed(
    model, sets, tmp_path, monkeypatch
):
    out = tmp_path / "fewshot.json"
    old = curve(model, sets, out, CurveConfig(sizes=[2], seeds=[0], scratch_steps=0))
    monkeypatch.setattr(curves, "finetune", no_more)
    changed = CurveConfig(
        sizes=[2], seeds=[0], scratch_steps=0, finetune={"refit": {"force_noise": 0.5}}
    )
    with pytest.raises(DestinationError, match=r"fewshot\.json: holds a curve of another model"):
        curve(model, sets, out, changed)
    assert json.loads(out.read_text()) == sealed(old)

    with pytest.raises(AssertionError, match="computed what was there"):
        few_shot_curve(model, sets["platinum"], out, changed, overwrite=True, say=print)
    renamed = json.loads((tmp_path / "fewshot.1.json").read_text())
    assert renamed == sealed(old)
    assert not out.exists()


def test_larger_ladder_keeps_the_rows_that_it_has(model, sets, tmp_path, monkeypatch):
    """Another size is another question of the same kind, not another experiment."""
    out, asked = tmp_path / "fewshot.json", []
    first = curve(model, sets, out, CurveConfig(sizes=[2], seeds=[0], scratch_steps=0))["rows"]

    def note(model, data, config):
        asked.append(config.num_structures)
        return finetune(model, data, config)

    monkeypatch.setattr(curves, "finetune", note)
    content = curve(model, sets, out, CurveConfig(sizes=[2, 4], seeds=[0], scratch_steps=0))
    assert asked == [4] and content["rows"][:3] == first


def test_impossible_size_is_refused_before_anything_is_computed(model, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "finetune", no_more)
    with pytest.raises(EvenfieldError, match="999 were asked for"):
        curve(model, sets, tmp_path / "fewshot.json", CurveConfig(sizes=[2, 999], seeds=[0]))


def test_from_scratch_is_trained_on_the_drawn_structures_with_the_models_own_recipe(
    model, sets, tmp_path, monkeypatch
):
    seen = []

    def note(config, quiet):
        seen.append((config, [s.structure_id for s in iter_structures(config.data, "train")]))
        return pretrain(config, quiet=quiet)

    monkeypatch.setattr(curves, "pretrain", note)
    # what belongs to a corpus and to a long run, as the recipe of evenfield-1 has it
    of_corpus = {
        "default_level": "mp_pbe",
        "mixing": {"level_shares": {"mp_pbe": 0.6, "chgnet": 0.4}},
        "level_sharing": {"levels": ["mp_pbe", "chgnet"]},
        "compute": {"compiled": True},
        "schedule": {"warmup_steps": 200, "decay_share": 0.3},
        "start_from": "evenfield-1",
    }
    recipe = model.record.training["config"] | of_corpus
    training = {**model.record.training, "config": recipe}
    model = replace(model, record=model.record.model_copy(update={"training": training}))
    content = curve(
        model, sets, tmp_path / "fewshot.json", CurveConfig(sizes=[6], seeds=[5], scratch_steps=17)
    )
    rows = {row["strategy"]: row for row in content["rows"]}
    assert set(rows) == {"pretrained", "step0", "refit", "scratch"}
    assert rows["scratch"]["force_mae"] > 0 and rows["scratch"]["seconds"] > 0
    (config, trained_on) = seen[0]
    assert sorted(trained_on) == sorted(s.structure_id for s in draw(sets["platinum"], 6, 5))
    assert (config.max_steps, config.seed, config.model.network.channels) == (17, 5, 8)
    assert (config.schedule.warmup_steps, config.schedule.decay_share) == (2, 0.3)
    assert not config.compute.compiled and not config.level_sharing.levels
    assert config.start_from is None
    assert config.stream.edge_budget == 1500 and not Path(config.out).exists()


def test_no_task_gets_all_trainings_from_scratch():
    """They take longest; one of two tasks had them all, with one strategy and one seed."""
    cells = [Cell(size, 0, name) for size in (8, 16, 40, 160) for name in ("refit", "scratch")]
    shares = [_share(cells, number, 2) for number in (1, 2)]
    assert sorted(shares[0] + shares[1]) == sorted(cells)
    for share in shares:
        assert [cell.strategy for cell in share].count("scratch") == 2
        assert share == sorted(share, key=cells.index)


def test_tasks_of_an_array_compute_each_cell_once(model, sets, tmp_path, monkeypatch):
    out, whole = tmp_path / "fewshot.json", tmp_path / "whole.json"
    for k in (1, 2, 3):
        few_shot_curve(model, sets["platinum"], out, CURVE, task=(k, 3), say=lambda text: None)
    assert not out.exists() and len(list(tmp_path.glob("fewshot-task*of3.json"))) == 3
    curve(model, sets, whole)
    monkeypatch.setattr(curves, "finetune", no_more)
    content = curve(model, sets, out)

    def figures(rows: list) -> dict:
        return {(r["num_structures"], r["seed"], r["strategy"]): r["force_mae"] for r in rows}

    assert figures(content["rows"]) == pytest.approx(figures(json.loads(whole.read_text())["rows"]))
    assert len(content["rows"]) == 12


def test_remedies_name_the_settings_of_a_curve(model, sets, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise WrongUnitError("looks like Hartree", remedy="set trust_units=true")

    monkeypatch.setattr(curves, "finetune", refuse)
    with pytest.raises(WrongUnitError) as caught:
        curve(model, sets, tmp_path / "fewshot.json")
    assert caught.value.remedy.endswith("settings of the fine-tuning begin with finetune. here")


def test_training_from_scratch_has_sizes_of_its_own():
    """A strategy of few structures is compared with a training on many."""
    config = CurveConfig(sizes=[4, 2], seeds=[0], scratch_sizes=[2, 6], scratch_steps=5)
    assert curves._cells(config) == [
        (2, 0, "refit"),
        (2, 0, "scratch"),
        (4, 0, "refit"),
        (6, 0, "scratch"),
    ]
    none = CurveConfig(sizes=[4], seeds=[0], scratch_sizes=[2], scratch_steps=0)
    assert curves._cells(none) == [(4, 0, "refit")]


def test_more_structures_from_scratch_than_there_are_are_refused(model, sets, tmp_path):
    config = CurveConfig(sizes=[2], seeds=[0], scratch_sizes=[1000], scratch_steps=5)
    with pytest.raises(EvenfieldError, match="1000 were asked for"):
        curve(model, sets, tmp_path / "fewshot.json", config)


def test_a_training_from_scratch_that_explodes_gives_no_row(model, sets, tmp_path):
    recipe = model.record.training["config"]
    hot = {**recipe, "optimizer": {**recipe["optimizer"], "learning_rate": 1e30}}
    record = model.record.model_copy(update={"training": {**model.record.training, "config": hot}})
    config = CurveConfig(sizes=[6], seeds=[5], strategies=[], scratch_steps=2)
    out = tmp_path / "fewshot.json"
    with pytest.raises(EvenfieldError, match=r"no longer finite, .*scratch_steps=0"):
        curve(replace(model, record=record), sets, out, config)
    assert not out.exists()
