"""Fine-tuning from data to a saved model: what is learned, kept and refused."""

from __future__ import annotations

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import chemical_symbols as symbols

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.census.domain import domain_of
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune import run as runs
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient import replay as replaying
from evenfield.finetune.heads import with_ensemble, with_head
from evenfield.finetune.leaks import notes_on_leaks
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.state import FineTuning, train_counts
from evenfield.finetune.target import Target, draw, open_target
from evenfield.model_zoo.engines.errors import UnseenElementError
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.hub.load import load
from evenfield.model_zoo.package.record import TrainingData


NEW = "Pt"
PLATINUM_ENERGY = 10.0
REFIT = FineTuneConfig(strategy="refit")
SOURCE = TrainingData(name="own", sha256="0", licence="CC0-1.0", num_structures=1)

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
        match=r"mixed: mixes levels of theory \(EMT, EMT-scaled\): fine-tune on one at a time, "
        r"with `evenfield data convert` and filters=\{COLUMN: EMT\}",
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


def test_evaluations_are_those_of_the_test_split(tuned, model, sets):
    test = list(iter_structures(sets["platinum"], "test"))
    counts = train_counts(model.record.train_counts, tuned.structures)
    expected = summarise(predict(tuned.potential, test), "test", counts)
    assert expected == tuned.stages["refit"].errors
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


def test_domain_of_a_tuned_level_grows_by_the_structures_it_was_tuned_on(tuned, model, tmp_path):
    saved = load(save_finetuned(tuned, model, tmp_path / "grown")).domains
    own = domain_of(tuned.target.train)
    assert saved == {"EMT": model.domains["EMT"].merged(own)} and f"{NEW}-{NEW}" in own.pairs
    # a base model that does not know what it was trained on does not learn it here
    unknown = replace(model, attachments={})
    place = save_finetuned(tuned, unknown, tmp_path / "unknown")
    assert load(place).domains == {}


def test_licence_of_the_new_weights_can_be_given(tuned, model, sets, tmp_path):
    saved = load(save_finetuned(tuned, model, tmp_path / "other", "MIT"))
    assert saved.record.licence == "MIT"


def test_what_is_known_of_the_levels_of_the_base_model_is_kept(tuned, model, tmp_path):
    details = {"EMT": "effective medium, ASE"}
    described = replace(model, record=model.record.model_copy(update={"level_details": details}))
    saved = load(save_finetuned(tuned, described, tmp_path / "described"))
    assert saved.record.level_details == details


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
    assert saved.domains == model.domains | {"EMT-scaled": domain_of(result.target.train)}
    # it answers with the head that was tuned, not with the base model's
    assert saved.calculator().level_of_theory == "EMT-scaled"
    assert (
        set(saved.record.elements) == {"EMT", "EMT-scaled"}
        and NEW not in saved.record.elements["EMT-scaled"]
    )


# --- what the model and its card say


def test_fine_tuned_level_is_the_default_and_the_card_counts_its_structures(tuned, model, tmp_path):
    saved = load(save_finetuned(tuned, model, tmp_path / "counted"))
    assert saved.record.default_level == tuned.level_of_theory == "EMT"

    platinum = [s for s in tuned.structures if 78 in s.atomic_numbers]
    assert saved.record.train_counts[NEW] == len(platinum) > 0
    assert saved.evaluation.per_element[NEW].num_train_structures == len(platinum)
    copper = saved.evaluation.per_element["Cu"].num_train_structures
    assert copper == saved.record.train_counts["Cu"] > 0


def test_new_head_starts_from_the_one_that_is_nearest_to_the_labels(model, sets):
    """Whatever their order: here the first head is stiffer, and has another zero."""
    potential = with_head(model.potential, "stiff")
    levels = potential.config.levels_of_theory
    with torch.no_grad():
        potential.scale[levels.index("stiff")] *= 3.0
        potential.e0[levels.index("stiff")] -= 100.0
    record = model.record.model_copy(
        update={"elements": {**model.record.elements, "stiff": model.record.elements["EMT"]}}
    )

    structures = [replace(s, level_of_theory="mine") for s in iter_structures(sets["base"], "test")]
    for default in ("EMT", "stiff", None):
        stated = record.model_copy(update={"default_level": default})
        loaded = replace(model, potential=potential, record=stated)
        target = Target("mine", structures, [], [], SOURCE)
        result = finetune(loaded, target, REFIT)
        assert result.started_from == "EMT"


def test_a_head_that_predicts_nothing_is_not_the_nearest(model, sets):
    """The forces of the structures vanish by symmetry, and its error was the smallest."""
    potential = with_head(model.potential, "silent")
    levels = potential.config.levels_of_theory
    with torch.no_grad():
        potential.scale[levels.index("silent")] *= 1e-3
    silent = model.record.elements["EMT"]
    record = model.record.model_copy(
        update={"elements": {**model.record.elements, "silent": silent}, "default_level": None}
    )
    loaded = replace(model, potential=potential, record=record)

    structures = []
    for number in range(6):
        atoms = bulk("Cu", a=3.4 + 0.08 * number, cubic=True)
        atoms.calc = EMT()
        stress = atoms.get_stress(voigt=False)
        # what a code prints for a force that vanishes
        forces = np.full((4, 3), 1e-4)
        labels = {"energy": atoms.get_potential_energy(), "forces": forces, "stress": stress}
        structures.append(Structure.from_atoms(atoms, "mine", str(number), "g", **labels))
    run = FineTuning(loaded, Target("mine", structures, [], [], SOURCE), REFIT, quiet=True)
    assert run.source_level == "EMT"


def test_heads_that_have_hardly_seen_an_element_are_left_out(model, sets):
    structures = [replace(s, level_of_theory="mine") for s in iter_structures(sets["base"], "test")]
    potential = with_head(model.potential, "few", "EMT")
    seen = dict.fromkeys(model.record.elements["EMT"], 100)
    record = model.record.model_copy(
        update={
            "elements": {"few": list(seen), "EMT": list(seen)},
            "level_counts": {"few": {**seen, "Cu": 2}, "EMT": seen},
            "default_level": "few",
        }
    )
    loaded = replace(model, potential=potential, record=record)
    run = FineTuning(loaded, Target("mine", structures, [], [], SOURCE), REFIT, quiet=True)
    assert run.source_level == "EMT"


@pytest.mark.parametrize("level", ["EMT", "new"])
def test_elements_without_an_energy_are_not_learned(model, sets, tmp_path, level):
    """Forces of platinum, and energies of other metals alone: its E0 is nowhere."""
    own = list(iter_structures(sets["base"], "train"))[:6]
    bare = [without_energy(one) for one in iter_structures(sets["platinum"], "train")][:6]
    structures = [replace(one, level_of_theory=level) for one in [*own, *bare]]
    target = Target(level, structures, [], [], SOURCE)
    result = finetune(model, target, REFIT)
    assert 78 in result.elements_without_energy
    tuned = load(save_finetuned(result, model, tmp_path / "tuned"))
    learned = tuned.record.trained_symbols(level)
    assert NEW not in learned
    assert {symbol for one in own for symbol in symbols_of(one)} <= set(learned)
    with pytest.raises(UnseenElementError, match=NEW):
        tuned.calculator(level_of_theory=level).get_potential_energy(bulk(NEW))


def without_energy(structure: Structure) -> Structure:
    labels = {name: value for name, value in structure.labels.items() if name != "energy"}
    return replace(structure, labels=labels)


def symbols_of(structure: Structure) -> set[str]:
    return {symbols[z] for z in structure.elements}


def test_a_level_whose_energies_fit_another_head_is_named(model, sets):
    potential = with_head(model.potential, "other", "EMT")
    with torch.no_grad():
        potential.e0[potential.config.levels_of_theory.index("other")] -= 2.0
    elements = {**model.record.elements, "other": model.record.elements["EMT"]}
    loaded = replace(
        model,
        potential=potential,
        record=model.record.model_copy(update={"elements": elements}),
    )
    structures = list(iter_structures(sets["base"], "test"))
    for level, named in (("EMT", False), ("other", True)):
        told = []
        as_if = [replace(s, level_of_theory=level) for s in structures]
        finetune(loaded, Target(level, as_if, [], [], SOURCE), REFIT, say=told.append)
        warnings = [line for line in told if line.startswith("warning: energies at other are 2")]
        assert bool(warnings) == named
        assert not named or "from the head of EMT" in warnings[0]


def test_level_that_the_frames_state_names_the_head(model, emt_file, tmp_path):
    frames = [a for a in ase.io.read(emt_file, ":") if set(a.symbols) == {"Cu"} and a.pbc.all()][:4]
    for atoms in frames:
        atoms.info = {"level_of_theory": "EMT"}
    ase.io.write(tmp_path / "mine.extxyz", frames)
    result = finetune(model, tmp_path / "mine.extxyz", REFIT, work=tmp_path / "work")
    assert result.level_of_theory == "EMT" == result.started_from


def test_level_of_the_model_in_another_spelling_is_refused(model, emt_file, tmp_path):
    """It would get a head of its own, and nobody would ask the one of the model again."""
    frames = [a for a in ase.io.read(emt_file, ":") if set(a.symbols) == {"Cu"} and a.pbc.all()][:4]
    for atoms in frames:
        atoms.info = {"level_of_theory": "emt"}
    ase.io.write(tmp_path / "mine.extxyz", frames)
    message = r"'emt' is spelt almost like 'EMT' of the model.*add source\.level_of_theory='EMT'"
    with pytest.raises(EvenfieldError, match=message):
        finetune(model, tmp_path / "mine.extxyz", REFIT, work=tmp_path / "work")


def test_replayed_level_in_another_spelling_is_refused(model, structures):
    one = replace(structures[0], level_of_theory="E_MT")
    with pytest.raises(EvenfieldError, match="'E_MT', which the model spells 'EMT'"):
        replaying._refuse_other_spelling(model.potential, [structures[0], one], "folder")


def test_what_is_tested_and_replayed_is_noted(model, sets, tmp_path):
    target = open_target(sets["platinum"])
    tested = [replace(one, split="train") for one in target.test[:3]]
    origin = {"file": "again", "sha256": "again"}
    write_data_set(tested, tmp_path / "again", origin, ConvertConfig())
    notes = notes_on_leaks(target, model.record, str(tmp_path / "again"))
    assert notes[0].startswith(f"3 of {len(target.test)} test structures of {sets['platinum']}")
    # both data sets of the fixture come from one file
    assert notes[-1].startswith("the model was trained on this source already (emt.extxyz)")
    assert notes_on_leaks(replace(target, source=SOURCE), model.record, None) == []


def test_a_result_that_is_not_finite_is_an_error(model, sets, monkeypatch):
    """Not only where it is saved: a curve shows it too."""

    def broken(potential, posterior):
        changed = with_ensemble(potential, posterior)
        changed.e0[0] = torch.nan
        return changed

    monkeypatch.setattr(runs, "with_ensemble", broken)
    structures = list(iter_structures(sets["base"], "test"))
    with pytest.raises(EvenfieldError, match="e0 holds NaN"):
        finetune(model, Target("EMT", structures, [], [], SOURCE), REFIT)
