"""Fine-tuning from data to a saved model, and the curve that can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from evenfield.data_pipelines.blocks import iter_structures
from evenfield.data_pipelines.convert import ConvertConfig, convert
from evenfield.finetune import fewshot
from evenfield.finetune.fewshot import FewShotConfig, FineTuneConfig, draw, few_shot_curve, finetune, save_finetuned
from evenfield.model_zoo.hub import LoadedModel, load
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.evaluation import predict, summarise
from evenfield.pretrain.run import pretrain


NEW = "Pt"
PLATINUM_ENERGY = 10.0  # eV an atom, which the pretrained model cannot know; EMT's own zero is the crystal


@pytest.fixture(scope="module")
def sets(emt_file, tmp_path_factory) -> dict[str, Path]:
    """The EMT part of the file with and without platinum, and all levels with it."""
    folder = tmp_path_factory.mktemp("sets")
    frames = ase.io.read(emt_file, ":")
    for k, atoms in enumerate(frames):
        atoms.info["split"] = ("test", "train", "train")[k % 3]
        atoms.calc.results["energy"] += PLATINUM_ENERGY * (atoms.symbols == NEW).sum()
    ase.io.write(folder / "all.extxyz", frames)
    ase.io.write(folder / "emt.extxyz", [atoms for atoms in frames if atoms.info["level"] == "EMT"])
    columns = {"level_of_theory": "level", "split": "split"}
    base = ConvertConfig(columns=columns, without_elements=[NEW], licence="CC0-1.0")
    target = ConvertConfig(columns=columns, with_elements=[NEW], licence="CC-BY-4.0")
    convert(folder / "emt.extxyz", folder / "base", base)
    convert(folder / "emt.extxyz", folder / "platinum", target)
    convert(folder / "all.extxyz", folder / "mixed", target)
    return {name: folder / name for name in ("base", "platinum", "mixed")}


@pytest.fixture(scope="module")
def model(sets, tmp_path_factory) -> LoadedModel:
    """A model of 6 metals."""
    config = PretrainConfig(
        data=str(sets["base"]),
        out=str(tmp_path_factory.mktemp("runs") / "metals"),
        licence="Apache-2.0",
        max_steps=120,
        evaluate_every=1000,
        model={"channels": 8, "l_max": 2, "num_layers": 2, "readout_size": 16, "radial_hidden": 16, "cutoff": 4.0},
        stream={"edge_budget": 1500},
        engine={"warmup_steps": 5},
    )
    return load(pretrain(config, quiet=True))


# --- drawing


def test_draws_are_nested_and_repeatable(sets):
    ids = {n: [s.structure_id for s in draw(sets["platinum"], n, 3)] for n in (2, 4, 8)}
    assert ids[2] == ids[4][:2] and ids[4] == ids[8][:4]
    assert len(set(ids[8])) == 8
    assert [s.structure_id for s in draw(sets["platinum"], 8, 4)] != ids[8]


def test_all_training_structures_when_no_number_is_given(sets):
    drawn = {s.structure_id for s in draw(sets["platinum"], None, 0)}
    assert drawn == {s.structure_id for s in iter_structures(sets["platinum"], "train")}
    test = {s.structure_id for s in iter_structures(sets["platinum"], "test")}
    assert test and not drawn & test


def test_too_many_structures_are_refused_with_the_number_that_there_is(sets, model):
    num = len(draw(sets["platinum"], None, 0))
    with pytest.raises(ValueError, match=rf"platinum: has {num} training structures, 999 were asked for"):
        finetune(model, sets["platinum"], FineTuneConfig(num_structures=999))


def test_mixed_levels_of_theory_are_refused(sets, model):
    with pytest.raises(ValueError, match=r"mixed: mixes levels of theory \(EMT, EMT-scaled\): fine-tune on one at a"):
        finetune(model, sets["mixed"], FineTuneConfig())


# --- fine-tuning


@pytest.fixture(scope="module")
def tuned(model, sets):
    return finetune(model, sets["platinum"], FineTuneConfig())


def test_new_element_is_learned(tuned, model):
    pretrained, step0 = (tuned.evaluations[name] for name in ("pretrained", "step0"))
    assert NEW not in model.record.elements["EMT"]
    assert tuned.reference.mae_after <= tuned.reference.mae_before
    assert step0["energy_mae_per_atom"] < 0.5 * pretrained["energy_mae_per_atom"]
    assert step0["force_mae"] == pytest.approx(pretrained["force_mae"])  # E0 exerts no force
    others = [abs(shift) for symbol, shift in tuned.reference.shifts.items() if symbol != NEW]
    assert tuned.reference.shifts[NEW] > PLATINUM_ENERGY / 2 > 5 * max(others)


def test_new_element_improves_on_structures_left_out(tuned, model, sets):
    """On the crystals: the alloys of the test split hold pairs of elements that no training structure holds."""
    crystals = [s for s in iter_structures(sets["platinum"], "test") if s.group == NEW]
    before, after = (summarise(predict(p, crystals), "test") for p in (model.potential, tuned.potential))
    assert after["force_mae"] < 0.75 * before["force_mae"]
    assert after["energy_mae_per_atom"] < 0.05 * before["energy_mae_per_atom"]


def test_evaluations_are_those_of_the_test_split(tuned, sets):
    test = list(iter_structures(sets["platinum"], "test"))
    assert summarise(predict(tuned.potential, test), "test") == tuned.evaluations["refit"]
    assert all(evaluation["num_structures"] == len(test) for evaluation in tuned.evaluations.values())
    assert 0 == tuned.seconds["pretrained"] < tuned.seconds["step0"] < tuned.seconds["refit"]


def test_pretrained_model_is_left_as_it_was(model, sets):
    before = {name: value.clone() for name, value in model.potential.state_dict().items()}
    finetune(model, sets["platinum"], FineTuneConfig(num_structures=2))
    assert all(torch.equal(before[name], value) for name, value in model.potential.state_dict().items())


def test_saved_model_knows_its_origin_and_the_new_element(tuned, model, sets, tmp_path):
    saved = load(save_finetuned(tuned, model, sets["platinum"], tmp_path / "metals-pt", None))
    assert saved.record.base_model == model.reference
    assert saved.record.name == "metals-pt" and saved.record.licence == "Apache-2.0"
    assert set(saved.record.elements["EMT"]) == {*model.record.elements["EMT"], NEW}
    assert [data.licence for data in saved.record.training_data] == ["CC0-1.0", "CC-BY-4.0"]
    assert saved.record.training_data[1].num_structures == len(tuned.structures)
    assert saved.record.train_counts[NEW] == len(tuned.structures)
    with_copper = sum("Cu" in s.to_atoms().symbols for s in tuned.structures)
    assert saved.record.train_counts["Cu"] == model.record.train_counts["Cu"] + with_copper
    assert saved.record.training["refit"]["rows"] == tuned.refit.rows
    structure = next(iter_structures(sets["platinum"], "test"))
    atoms = structure.to_atoms()
    with pytest.raises(ValueError, match=NEW):
        model.calculator().calculate(atoms)
    atoms.calc = saved.calculator()
    expected = predict(tuned.potential, [structure]).forces[..., 1]
    assert np.allclose(atoms.get_forces(), expected, atol=1e-5)


def test_licence_of_the_new_weights_can_be_given(tuned, model, sets, tmp_path):
    saved = load(save_finetuned(tuned, model, sets["platinum"], tmp_path / "other", "MIT"))
    assert saved.record.licence == "MIT"


def test_new_level_of_theory_gets_a_head_and_the_old_one_keeps_its_bits(model, sets, emt_file, tmp_path):
    """EMT-scaled has another zero of energy and another slope."""
    frames = [atoms for atoms in ase.io.read(emt_file, ":") if atoms.info["level"] == "EMT-scaled"]
    frames = [atoms for atoms in frames if NEW not in atoms.symbols]
    for k, atoms in enumerate(frames):
        atoms.info["split"] = ("test", "train", "train")[k % 3]
    ase.io.write(tmp_path / "scaled.extxyz", frames)
    columns = {"level_of_theory": "level", "split": "split"}
    convert(tmp_path / "scaled.extxyz", tmp_path / "scaled", ConvertConfig(columns=columns))
    result = finetune(model, tmp_path / "scaled", FineTuneConfig())
    assert result.potential.config.levels_of_theory == ["EMT", "EMT-scaled"]
    pretrained, step0, refit = (result.evaluations[k] for k in ("pretrained", "step0", "refit"))
    assert pretrained["energy_mae_per_atom"] > 1 > 4 * step0["energy_mae_per_atom"]  # 0.1 eV times Z
    assert refit["force_mae"] <= 1.02 * step0["force_mae"]
    test = list(iter_structures(sets["base"], "test"))
    before, after = predict(model.potential, test), predict(result.potential, test)
    assert np.array_equal(before.forces, after.forces) and np.array_equal(before.energy, after.energy)
    saved = load(save_finetuned(result, model, tmp_path / "scaled", tmp_path / "two-levels", None))
    assert set(saved.record.elements) == {"EMT", "EMT-scaled"} and NEW not in saved.record.elements["EMT-scaled"]


# --- the curve


CURVE = FewShotConfig(sizes=[2, 6], seeds=[0, 1], scratch_steps=0)


def curve(model, sets, out: Path, config: FewShotConfig = CURVE) -> dict:
    return few_shot_curve(model, sets["platinum"], out, config, say=lambda text: None)


def no_more(*_: object) -> None:
    raise AssertionError("computed what was there")


def test_curve_has_its_format_and_is_not_computed_twice(model, sets, tmp_path, monkeypatch):
    out = tmp_path / "new" / "fewshot.json"
    content = curve(model, sets, out)
    assert json.loads(out.read_text()) == content
    assert set(content) == {"target", "force_rms", "origin", "rows"}
    assert content["target"] == "platinum" and content["force_rms"] > 0
    keys = {"num_structures", "strategy", "seed", "force_mae", "energy_mae_per_atom", "seconds"}
    assert all(set(row) == keys for row in content["rows"])
    cells = [(row["num_structures"], row["seed"], row["strategy"]) for row in content["rows"]]
    strategies = ("pretrained", "step0", "refit")
    assert cells == [(n, seed, strategy) for n in (2, 6) for seed in (0, 1) for strategy in strategies]
    monkeypatch.setattr(fewshot, "finetune", no_more)
    assert curve(model, sets, out) == content


def test_interrupted_curve_goes_on(model, sets, tmp_path, monkeypatch):
    out, done = tmp_path / "fewshot.json", []

    def some(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(finetune(*args))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(fewshot, "finetune", some)
        with pytest.raises(KeyboardInterrupt):
            curve(model, sets, out)
    first = json.loads(out.read_text())["rows"]
    assert [(row["num_structures"], row["seed"]) for row in first[::3]] == [(2, 0), (2, 1)]
    whole = curve(model, sets, out)
    assert whole["rows"][:6] == first and len(whole["rows"]) == 12
    assert whole["force_rms"] == pytest.approx(done[0].evaluations["refit"]["force_rms"])


def test_other_settings_or_data_start_anew(model, sets, tmp_path, monkeypatch):
    out = tmp_path / "fewshot.json"
    curve(model, sets, out, FewShotConfig(sizes=[2], seeds=[0], scratch_steps=0))
    monkeypatch.setattr(fewshot, "finetune", no_more)
    changed = FewShotConfig(sizes=[2], seeds=[0], scratch_steps=0, refit={"force_noise": 0.5})
    with pytest.raises(AssertionError, match="computed what was there"):
        curve(model, sets, out, changed)


def test_larger_ladder_keeps_the_rows_that_it_has(model, sets, tmp_path, monkeypatch):
    """Another size is another question of the same kind, not another experiment."""
    out, asked = tmp_path / "fewshot.json", []
    first = curve(model, sets, out, FewShotConfig(sizes=[2], seeds=[0], scratch_steps=0))["rows"]

    def note(model, data, config):
        asked.append(config.num_structures)
        return finetune(model, data, config)

    monkeypatch.setattr(fewshot, "finetune", note)
    content = curve(model, sets, out, FewShotConfig(sizes=[2, 4], seeds=[0], scratch_steps=0))
    assert asked == [4] and content["rows"][:3] == first


def test_impossible_size_is_refused_before_anything_is_computed(model, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(fewshot, "finetune", no_more)
    with pytest.raises(ValueError, match="999 were asked for"):
        curve(model, sets, tmp_path / "fewshot.json", FewShotConfig(sizes=[2, 999], seeds=[0]))


def test_from_scratch_is_trained_on_the_drawn_structures_with_the_models_own_recipe(model, sets, tmp_path, monkeypatch):
    seen = []

    def note(config, quiet):
        seen.append((config, [s.structure_id for s in iter_structures(config.data, "train")]))
        return pretrain(config, quiet=quiet)

    monkeypatch.setattr(fewshot, "pretrain", note)
    content = curve(model, sets, tmp_path / "fewshot.json", FewShotConfig(sizes=[6], seeds=[5], scratch_steps=3))
    rows = {row["strategy"]: row for row in content["rows"]}
    assert set(rows) == {"pretrained", "step0", "refit", "scratch"}
    assert rows["scratch"]["force_mae"] > rows["refit"]["force_mae"] and rows["scratch"]["seconds"] > 0
    (config, trained_on) = seen[0]
    assert sorted(trained_on) == sorted(s.structure_id for s in draw(sets["platinum"], 6, 5))
    assert (config.max_steps, config.seed, config.model.channels) == (3, 5, 8)
    assert config.stream.edge_budget == 1500 and not Path(config.out).exists()
