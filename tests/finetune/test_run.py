"""Fine-tuning from data to a saved model: what is learned, kept and refused."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.target import draw
from evenfield.model_zoo.engines.errors import UnseenElementError
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.hub.load import load


NEW = "Pt"
PLATINUM_ENERGY = 10.0
REFIT = FineTuneConfig(strategy="refit")

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
    with pytest.raises(
        EvenfieldError,
        match=rf"platinum: has {num} training structures, but 999 were asked for",
    ):
        finetune(model, sets["platinum"], FineTuneConfig(num_structures=999))


def test_mixed_levels_of_theory_are_refused(sets, model):
    with pytest.raises(
        EvenfieldError,
        match=r"mixed: mixes levels of theory \(EMT, EMT-scaled\): fine-tune on one at a",
    ):
        finetune(model, sets["mixed"], FineTuneConfig())


# --- fine-tuning


@pytest.fixture(scope="module")
def tuned(model, sets):
    return finetune(model, sets["platinum"], REFIT)


def test_new_element_is_learned(tuned, model):
    pretrained, step0 = (tuned.stages[name].errors for name in ("pretrained", "step0"))
    assert NEW not in model.record.elements["EMT"]
    assert tuned.reference.mae_after <= tuned.reference.mae_before
    assert step0.energy_mae_per_atom < 0.5 * pretrained.energy_mae_per_atom
    assert step0.force_mae == pytest.approx(pretrained.force_mae)  # E0 exerts no force
    others = [abs(shift) for symbol, shift in tuned.reference.shifts.items() if symbol != NEW]
    assert tuned.reference.shifts[NEW] > PLATINUM_ENERGY / 2 > 5 * max(others)


def test_new_element_improves_on_structures_left_out(tuned, model, sets):
    """On crystals only: the alloys of the test split have pairs of elements unseen in training."""
    crystals = [s for s in iter_structures(sets["platinum"], "test") if s.group == NEW]
    before, after = (
        summarise(predict(p, crystals), "test") for p in (model.potential, tuned.potential)
    )
    assert after.force_mae < 0.75 * before.force_mae
    assert after.energy_mae_per_atom < 0.05 * before.energy_mae_per_atom


def test_evaluations_are_those_of_the_test_split(tuned, sets):
    test = list(iter_structures(sets["platinum"], "test"))
    assert summarise(predict(tuned.potential, test), "test") == tuned.stages["refit"].errors
    stages = tuned.stages
    assert all(stage.errors.num_structures == len(test) for stage in stages.values())
    assert 0 == stages["pretrained"].seconds < stages["step0"].seconds < stages["refit"].seconds


def test_pretrained_model_is_left_as_it_was(model, sets):
    before = {name: value.clone() for name, value in model.potential.state_dict().items()}
    finetune(
        model,
        sets["platinum"],
        FineTuneConfig(num_structures=2, strategy="full", gradient={"max_steps": 3}),
    )
    assert all(
        torch.equal(before[name], value) for name, value in model.potential.state_dict().items()
    )


def test_saved_model_knows_its_origin_and_the_new_element(tuned, model, sets, tmp_path):
    saved = load(save_finetuned(tuned, model, tmp_path / "metals-pt"))
    assert saved.record.base_model == model.reference
    assert saved.record.name == "metals-pt" and saved.record.licence == "Apache-2.0"
    assert set(saved.record.elements["EMT"]) == {*model.record.elements["EMT"], NEW}
    assert [data.licence for data in saved.record.training_data] == ["CC0-1.0", "CC-BY-4.0"]
    assert saved.record.training_data[1].num_structures == len(tuned.structures)
    assert saved.record.train_counts[NEW] == len(tuned.structures)
    with_copper = sum("Cu" in s.to_atoms().symbols for s in tuned.structures)
    assert saved.record.train_counts["Cu"] == model.record.train_counts["Cu"] + with_copper
    assert saved.record.training["finetune"]["refit"]["rows"] == tuned.refit.rows
    structure = next(iter_structures(sets["platinum"], "test"))
    atoms = structure.to_atoms()
    with pytest.raises(UnseenElementError, match=NEW):
        model.calculator().calculate(atoms)
    atoms.calc = saved.calculator()
    expected = predict(tuned.potential, [structure]).forces[..., 1]
    assert np.allclose(atoms.get_forces(), expected, atol=1e-5)


def test_licence_of_the_new_weights_can_be_given(tuned, model, sets, tmp_path):
    saved = load(save_finetuned(tuned, model, tmp_path / "other", "MIT"))
    assert saved.record.licence == "MIT"


def test_new_level_of_theory_gets_a_head_and_the_old_one_keeps_its_bits(
    model, sets, emt_file, tmp_path
):
    """EMT-scaled has another zero of energy and another slope."""
    frames = [atoms for atoms in ase.io.read(emt_file, ":") if atoms.info["level"] == "EMT-scaled"]
    frames = [atoms for atoms in frames if NEW not in atoms.symbols]
    for k, atoms in enumerate(frames):
        atoms.info["split"] = ("test", "train", "train")[k % 3]
    ase.io.write(tmp_path / "scaled.extxyz", frames)
    columns = {"level_of_theory": "level", "split": "split"}
    convert(tmp_path / "scaled.extxyz", tmp_path / "scaled", ConvertConfig(columns=columns))
    result = finetune(model, tmp_path / "scaled", REFIT)
    assert result.potential.config.levels_of_theory == ["EMT", "EMT-scaled"]
    pretrained, step0, refit = (result.stages[k].errors for k in ("pretrained", "step0", "refit"))
    assert pretrained.energy_mae_per_atom > 1 > 4 * step0.energy_mae_per_atom  # 0.1 eV times Z
    assert refit.force_mae <= 1.02 * step0.force_mae
    test = list(iter_structures(sets["base"], "test"))
    before, after = predict(model.potential, test), predict(result.potential, test)
    assert np.array_equal(before.forces, after.forces) and np.array_equal(
        before.energy, after.energy
    )
    saved = load(save_finetuned(result, model, tmp_path / "two-levels"))
    assert (
        set(saved.record.elements) == {"EMT", "EMT-scaled"}
        and NEW not in saved.record.elements["EMT-scaled"]
    )
