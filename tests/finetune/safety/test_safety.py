"""A few structures with another zero, another unit, or one of a kind: never worse than before."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from ase.units import GPa, Hartree
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evenfield.finetune import set_up
from evenfield.finetune.closed_form.reference_energies import refit_reference_energies
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.safety.guard import LEAST_BOUND, HeldOut
from evenfield.finetune.safety.step0 import (
    WorseError,
    WrongUnitError,
    can_judge_units,
    refuse_wrong_units,
    step,
    worse_labels,
)
from evenfield.finetune.target import Target, alike, hold_out
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.model_zoo.package.record import ModelRecord, TrainingData


METALS = (13, 28, 29, 46, 47, 78, 79)
REFIT = FineTuneConfig(strategy="refit")
SOURCE = TrainingData(name="own", sha256="0", licence="CC0-1.0", num_structures=1)


@pytest.fixture
def model(potential) -> LoadedModel:
    elements = [chemical_symbols[z] for z in METALS]
    return LoadedModel(potential, ModelRecord(name="m", elements={"EMT": elements}), "m")


@pytest.fixture
def own(potential, structures, labelled_by) -> list:
    """Labels of the same potential with other readout weights: there is something to learn."""
    other = type(potential)(potential.config).double().eval()
    other.load_state_dict(potential.state_dict())
    with torch.no_grad():
        other.readout.weight[0] *= 1.3
    return labelled_by(other, structures)


def target(structures, share: float = 0.2, seed: int = 0, level: str = "EMT") -> Target:
    structures = [replace(s, level_of_theory=level) for s in structures]
    train, valid = hold_out(structures, share, seed)
    return Target(level, train, valid, [], SOURCE)


# --- never worse


def test_never_worse_than_step_0_on_held_out_structures_whatever_is_drawn(model, own):
    rng = np.random.default_rng(0)
    noisy = [
        s.with_labels(
            energy=s.energy + rng.normal(0, 1.0),
            forces=s.forces + rng.normal(0, 1.0, s.forces.shape),
        )
        for s in own
    ]

    @settings(max_examples=6, phases=[Phase.generate])  # to shrink a failure would take minutes
    @given(st.data())
    def check(data) -> None:
        chosen = data.draw(st.permutations(range(len(noisy))))[: data.draw(st.integers(8, 12))]
        drawn = target([noisy[k] for k in chosen], seed=data.draw(st.integers(0, 9)))
        assert drawn.valid
        result = finetune(model, drawn, REFIT)
        step0, after = result.held_out_scores
        assert after <= step0
        untouched = copy.deepcopy(
            model.potential
        )  # the score is what it says: errors over those of step 0
        refit_reference_energies(untouched, 0, drawn.train, set(METALS), held_out=drawn.valid)
        scorer = HeldOut(untouched, drawn.valid)
        assert scorer.step0 == pytest.approx(step0) and scorer.score(
            result.potential
        ) == pytest.approx(after)
        now = step("", result.potential, drawn.valid)
        assert now.force_mae <= scorer.bound.force_mae * (1 + 1e-6)
        assert now.energy_mae_per_atom <= scorer.bound.energy_mae_per_atom * (1 + 1e-6)
        better.append(after < step0)

    better: list[bool] = []
    check()
    assert any(better)  # the guard does not simply refuse everything


def test_step_0_is_never_above_the_pretrained_error(model, own):
    rng = np.random.default_rng(1)
    for spread in (0.0, 0.3, 30.0):
        shifted = [s.with_labels(energy=s.energy + len(s) * rng.normal(0, spread)) for s in own[:9]]
        rows = finetune(model, target(shifted), REFIT).table
        assert [row.name for row in rows] == [
            "pretrained",
            "step 0: E0 refitted",
            "set-up: new elements, core radii",
        ]
        assert not worse_labels(rows[1], rows[0]) and not worse_labels(rows[2], rows[1])


def test_set_up_that_makes_it_worse_is_refused(model, own, monkeypatch):
    real = set_up.refit_reference_energies

    def shift(potential, head, structures, known, **options):
        report = real(potential, head, structures, known, **options)
        potential.e0[head] += 1.0
        return report

    monkeypatch.setattr(set_up, "refit_reference_energies", shift)
    with pytest.raises(
        WorseError,
        match=r"made the model worse on the new data \(energy MAE .* to .*\), so that nothing",
    ):
        finetune(model, target(own[:8]), REFIT)


# --- other zeros and units


def test_offset_of_10_eV_per_atom_is_another_zero_and_not_another_physics(model, own):
    shifted = [s.with_labels(energy=s.energy + 10.0 * len(s)) for s in own]
    for few in (shifted[:1], shifted):
        result = finetune(model, target(few), REFIT)
        assert result.reference.another_zero
        assert all(v == pytest.approx(10.0, abs=0.5) for v in result.reference.shifts.values())
        assert result.table[0].energy_mae_per_atom > 9 > 60 * result.table[1].energy_mae_per_atom
    right = finetune(model, target(own), REFIT)
    assert not right.reference.another_zero
    assert worse_labels(step("", result.potential, shifted), step("", right.potential, own)) == []


def with_force_errors(model, structures, share):
    """The model with an evaluation in which its force errors are this share of the forces."""
    errors = summarise(predict(model.potential, structures), "test")
    wrong = {**errors.mae, "forces": share * errors.force_rms}
    levels = {name: replace(level, mae=wrong) for name, level in errors.levels.items()}
    return replace(model, evaluation=replace(errors, mae=wrong, levels=levels))


def test_a_hardly_trained_model_says_nothing_about_units(model, own):
    """Its forces are many times too small, and correlate: that looked like another unit."""
    few = own[:5]
    predicted = predict(model.potential, few)
    ends = np.cumsum(predicted.num_atoms)[:-1]
    forces = np.split(15 * predicted.forces[..., 1], ends)
    stiff = [s.with_labels(energy=s.energy, forces=f) for s, f in zip(few, forces, strict=True)]
    with pytest.raises(WrongUnitError, match="forces: the labels are 15 times"):
        finetune(with_force_errors(model, own, 0.1), target(stiff), REFIT)
    assert finetune(with_force_errors(model, own, 0.6), target(stiff), REFIT).refit.rows


def test_units_are_judged_by_the_level_that_the_new_head_starts_from(model, own):
    poor = with_force_errors(model, own, 0.6).evaluation
    good = with_force_errors(model, own, 0.1).evaluation
    assert not can_judge_units(poor, "EMT")
    assert can_judge_units(replace(poor, levels=good.levels), "EMT")
    assert not can_judge_units(replace(poor, levels=good.levels), "another")
    assert not can_judge_units(with_force_errors(model, own, math.nan).evaluation, "EMT")
    assert can_judge_units(None, "EMT")


def test_data_in_hartree_are_refused_with_the_unit(model, own):
    in_hartree = [s.with_labels(energy=s.energy / Hartree, forces=s.forces / Hartree) for s in own]
    message = (
        r"forces: the labels are 0\.0\d+ times what the model predicts.*look like Hartree/A or "
        r"Ry/Bohr, not eV/A; energy: the labels .*look like Hartree, not eV.*data convert` and "
        r"columns\.forces=forces units\.forces=Hartree/A columns\.energy=energy "
        r"units\.energy=Hartree; or"
    )
    with pytest.raises(WrongUnitError, match=message):
        finetune(model, target(in_hartree), REFIT)
    only_energies = [s.with_labels(energy=s.energy / Hartree, forces=None) for s in own]
    with pytest.raises(
        WrongUnitError,
        match=r"energy: the labels are .* look like Hartree, not eV.*units\.energy=Hartree",
    ):
        finetune(model, target(only_energies), REFIT)
    assert (
        finetune(
            model, target(in_hartree), REFIT.model_copy(update={"trust_units": True})
        ).refit.rows
        > 0
    )


def test_labels_that_the_model_knows_nothing_of_are_no_wrong_unit(model, own):
    rng = np.random.default_rng(0)
    other = [
        s.with_labels(forces=rng.normal(0, 0.01, s.forces.shape), energy=rng.normal()) for s in own
    ]
    finetune(model, target(other), REFIT)


# --- few and odd structures


def test_element_that_the_new_data_lack_keeps_its_bits(model, own):
    without_gold = [s for s in own if 79 not in s.atomic_numbers]
    after, before = finetune(model, target(without_gold), REFIT).potential, model.potential
    assert torch.equal(after.e0[0, 79], before.e0[0, 79])
    assert torch.equal(after.readout.element_weight[0, 79], before.readout.element_weight[0, 79])
    assert torch.equal(after.backbone.embedding.weight[79], before.backbone.embedding.weight[79])


def test_one_structure_changes_nothing_but_e0(model, own):
    result = finetune(model, target(own[:1]), REFIT)
    assert torch.allclose(
        result.potential.readout.weight, model.potential.readout.weight, atol=1e-9
    )
    assert not worse_labels(result.table[-1], result.table[0])
    assert np.isfinite(result.posterior.covariance).all()


def test_single_composition_names_what_it_cannot_tell_and_stays_finite(model, own):
    alloy = next(s for s in own if len(s.elements) == 2)
    rng = np.random.default_rng(3)
    few = [
        replace(alloy, positions=alloy.positions + rng.normal(0, 0.05, alloy.positions.shape))
        for _ in range(6)
    ]
    result = finetune(model, target(few, level="another"), REFIT)
    assert sorted(result.reference.undetermined) == sorted(
        chemical_symbols[z] for z in alloy.elements
    )
    assert np.isfinite(result.posterior.covariance).all()
    spread = np.sqrt(
        np.diag(result.posterior.covariance)
    )  # of 1e4 eV where nothing is known of an E0
    assert (
        np.linalg.eigvalsh(result.posterior.covariance / np.outer(spread, spread)) > -1e-9
    ).all()
    assert result.refit.relative_gradient < 1e-8


def test_copies_stay_together_and_do_not_pass_for_evidence(model, own):
    """Ten copies of one structure with noisy forces count as one: nothing is learned from them."""
    rng = np.random.default_rng(4)
    noisy = own[3].with_labels(forces=own[3].forces + rng.normal(0, 1.0, own[3].forces.shape))
    copies = [replace(noisy, structure_id=str(k)) for k in range(10)]
    assert len(alike(copies)) == 1 and hold_out(copies, 0.2, 0) == (copies, [])
    result = finetune(model, target(copies), REFIT)
    assert result.refit.duplicates == 9
    assert torch.allclose(
        result.potential.readout.weight, model.potential.readout.weight, atol=1e-9
    )
    train, valid = hold_out([*copies[:3], *own[:9]], 0.2, 1)
    assert valid and not {s.positions.tobytes() for s in train} & {
        s.positions.tobytes() for s in valid
    }


def test_groups_are_held_out_whole_when_there_are_enough(own):
    grouped = [replace(s, group=str(k // 2)) for k, s in enumerate(own[:14])]
    for seed in range(5):
        train, valid = hold_out(grouped, 0.2, seed)
        assert len(train) + len(valid) == 14 and 1 <= len(valid) <= 3
        assert not {s.group for s in train} & {s.group for s in valid}
    assert hold_out(own[:7], 0.2, 0) == (own[:7], [])


def test_copies_do_not_count_as_structures(model, own):
    """Twelve copies of two structures are two, for `auto` and for what is held out."""
    copies = [replace(own[k % 2], structure_id=str(k)) for k in range(12)]
    few = target(copies)
    assert few.num_different == 2 and not few.valid
    assert finetune(model, few, FineTuneConfig()).strategy == "refit"
    assert target(own[:12]).num_different == 12


def test_an_element_is_never_held_out_entirely(own):
    """Its E0 would not be learned, and the model would list it all the same."""
    gold = next(s for s in own if 79 in s.elements)
    others = [s for s in own if 79 not in s.elements][:9]
    for seed in range(8):
        train, valid = hold_out([gold, *others], 0.2, seed)
        assert valid and any(79 in s.elements for s in train)
        held_out = {int(z) for s in valid for z in s.elements}
        assert held_out <= {int(z) for s in train for z in s.elements}


def test_held_out_structures_never_take_what_tells_elements_apart(own):
    """Of elements in one ratio a sum of E0 is known, and errors of that ratio hide the rest."""
    alloy = next(s for s in own if len(s.elements) == 2)
    first, second = (int(z) for z in alloy.elements)
    rng = np.random.default_rng(5)

    def moved(numbers):
        positions = alloy.positions + rng.normal(0, 0.1, alloy.positions.shape)
        other = replace(alloy, atomic_numbers=np.array(numbers), positions=positions)
        # near copies would have one energy, and count as one
        return other.with_labels(energy=rng.normal(), forces=alloy.forces)

    same = [moved(alloy.atomic_numbers) for _ in range(9)]
    numbers = np.full(len(alloy), first)
    numbers[0] = second
    telling = moved(numbers if len(alloy) > 2 else np.full(len(alloy), first))
    for seed in range(12):
        train, valid = hold_out([telling, *same], 0.2, seed)
        assert valid and any(s is telling for s in train)


def test_forces_that_vanish_by_symmetry_veto_nothing(potential, own):
    """Float32 predicts them to 1e-6 eV/A: a rise of that refused every fit to crystals at rest."""
    crystal = next(s for s in own if len(s.elements) == 1 and s.pbc.all())
    numbers = crystal.atomic_numbers[:1]
    at_rest = replace(crystal, atomic_numbers=numbers, positions=np.zeros((1, 3)))
    at_rest = at_rest.with_labels(energy=5.0, forces=np.full((1, 3), 1e-6))
    held_out = HeldOut(potential, [at_rest])
    assert held_out.bound.force_mae == LEAST_BOUND["forces"]

    better = copy.deepcopy(potential)
    head = better.config.levels_of_theory.index("EMT")
    with torch.no_grad():
        error = predict(potential, [at_rest]).energy
        better.e0[head, int(numbers[0])] += float(error[0, 0] - error[0, 1]) / 2
    noisy = [at_rest.with_labels(energy=5.0, forces=np.full((1, 3), 3e-6))]
    held_out.valid = noisy
    assert held_out.score(better) < held_out.step0
    held_out.valid = [at_rest.with_labels(energy=5.0, forces=np.full((1, 3), 3e-3))]
    assert held_out.score(better) == math.inf


# --- the sign and the unit of the stress


def with_stress(potential, structures, factor: float) -> list:
    stress = predict(potential, structures).stress[..., 1]
    labelled = zip(structures, stress, strict=True)
    return [s.with_labels(stress=factor * value) for s, value in labelled if s.pbc.all()]


@pytest.mark.parametrize(
    ("factor", "unit"), [(-1.0, "-eV/A^3"), (1 / GPa, "GPa"), (-10 / GPa, "-kbar")]
)
def test_stress_of_another_sign_or_unit_is_named(potential, own, factor, unit):
    strained = [replace(s, cell=1.02 * s.cell, positions=1.02 * s.positions) for s in own[::2]]
    wrong = target(with_stress(potential, [*own, *strained], factor), share=0.0)
    with pytest.raises(WrongUnitError) as caught:
        refuse_wrong_units(potential, replace(wrong, is_file=True))
    assert f"look like {unit}, not eV/A^3" in str(caught.value)
    words = f"source.columns.stress=[stress,REF_stress] source.units.stress={unit}"
    assert words in caught.value.remedy


def test_stress_under_another_pressure_is_no_other_sign(potential, own):
    """Two functionals differ in their lattice constants, and so in the mean of the pressure."""
    right = with_stress(potential, own, 1.0)
    moved = [s.with_labels(stress=s.stress - 0.05 * np.eye(3)) for s in right]
    refuse_wrong_units(potential, target(moved, share=0.0))
    # too few to say anything
    refuse_wrong_units(potential, target(with_stress(potential, own, -1.0)[:3], share=0.0))
