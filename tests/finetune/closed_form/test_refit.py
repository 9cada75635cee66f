"""Readout refit: exactly linear, exactly the minimum, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.data_pipelines.batch import Batch
from evenfield.finetune.closed_form import noise_and_size, prior, refit
from evenfield.finetune.closed_form.design_rows import (
    LabelWeights,
    RefitConfig,
    Unknowns,
    WeightError,
    design_rows,
    feature_jacobian,
)
from evenfield.finetune.closed_form.folds import Fold
from evenfield.finetune.closed_form.posterior import (
    NoPosteriorError,
    Posterior,
    load_posterior,
)
from evenfield.finetune.closed_form.prior import Mixture, PriorChoice
from evenfield.finetune.closed_form.reference_energies import reference_precision
from evenfield.finetune.closed_form.refit import NothingToFitError, refit_readout
from evenfield.finetune.closed_form.ridge import NormalEquations
from evenfield.finetune.heads import add_to_head
from evenfield.model_zoo.evaluation.evaluation import predict
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.potential.derivatives import forces_and_stress


HEAD = 0
METALS = {13, 28, 29, 46, 47, 78, 79}
PT = 78
CONFIG = RefitConfig(energy_noise=0.02, force_noise=0.2)


@pytest.fixture
def off_target(potential, structures, labelled_by) -> list:
    """Labels of the potential itself with other readout weights and E0, and some noise."""
    rng = np.random.default_rng(5)
    labelled = labelled_by(perturbed(potential), structures)
    return [
        s.with_labels(
            energy=s.energy + rng.normal(0, 0.1),
            forces=s.forces + rng.normal(0, 0.05, s.forces.shape),
        )
        for s in labelled
    ]


def perturbed(potential, own: tuple[int, ...] = ()):
    """A copy with other weights in one head: shared, of the elements `own`, and every E0."""
    other = clone(potential)
    generator = torch.Generator().manual_seed(7)

    def noise(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        weight = other.readout.weight[HEAD]
        own_weight = other.readout.element_weight[HEAD]
        weight += 0.3 * noise(len(weight))
        for z in own:
            own_weight[z] += noise(len(weight))
        other.e0[HEAD] += noise(119)
    return other


def clone(potential):
    copy = type(potential)(potential.config).double().eval()
    copy.load_state_dict(potential.state_dict())
    return copy


def labels(potential, structures) -> tuple[np.ndarray, np.ndarray]:
    """Total energies (S,) and forces (3N,), predicted one by one to keep their order."""
    energies = []
    forces = []
    for structure in structures:
        predicted = predict(potential, [structure])
        numbers = torch.as_tensor(structure.atomic_numbers)
        # predictions are without E0
        e0 = potential.e0[HEAD, numbers].sum().item()
        energies.append(predicted.energy[0, 1] + e0)
        forces.append(predicted.forces[..., 1].ravel())
    return np.array(energies), np.concatenate(forces)


def errors(potential, structures) -> tuple[float, float]:
    summary = summarise(predict(potential, structures), "test")
    return summary.energy_mae_per_atom, summary.force_mae


# --- weights


def refitted(potential, structures, weights=None):
    """The readout weights and E0 after a refit of a copy."""
    copy = clone(potential)
    refit_readout(
        copy, HEAD, structures, known=METALS, known_e0=METALS, config=CONFIG, weights=weights
    )
    return torch.cat([copy.readout.weight[HEAD].ravel(), copy.e0[HEAD]]).detach().numpy()


def test_equal_weights_change_no_bit(potential, off_target):
    weights = LabelWeights.equal(len(off_target))
    np.testing.assert_array_equal(
        refitted(potential, off_target, weights), refitted(potential, off_target)
    )


def test_a_structure_of_weight_two_counts_like_its_copy(potential, off_target):
    """In the equations of its fold: rows given twice, and rows of weight two."""
    elements = np.array(sorted(METALS))
    unknowns = Unknowns(potential.readout.weight.shape[1], np.array([], dtype=int), elements)

    def equations(structures, of_structures) -> Fold:
        weights = replace(LabelWeights.equal(len(structures)), structures=np.array(of_structures))
        fold = Fold.empty(unknowns.num)
        for batch in design_rows(potential, HEAD, structures, unknowns, CONFIG, weights):
            for name in fold.equations:
                fold.equations[name].add(*batch.rows[name])
        return fold

    one, two, three = off_target[:3]
    weighted = equations([one, two, three], [1.0, 2.0, 0.0])
    copied = equations([one, two, two], [1.0, 1.0, 1.0])
    for name, expected in copied.equations.items():
        np.testing.assert_allclose(
            weighted.equations[name].matrix, expected.matrix, rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(
            weighted.equations[name].moment, expected.moment, rtol=1e-9, atol=1e-9
        )


def test_forces_of_an_element_of_weight_zero_do_not_count(potential, off_target):
    """Whatever they are: a hundred times larger errors on it change no equation of the forces."""
    elements = np.array(sorted(METALS))
    unknowns = Unknowns(potential.readout.weight.shape[1], np.array([], dtype=int), elements)
    of_elements = np.ones(119)
    of_elements[PT] = 0.0
    mixed = [s for s in off_target if PT in s.elements and len(s.elements) > 1][:4]
    weights = LabelWeights(np.ones(len(mixed)), of_elements)
    for batch in design_rows(potential, HEAD, mixed, unknowns, CONFIG, weights):
        matrix, targets = batch.rows["forces"]
        numbers = np.concatenate([s.atomic_numbers for s in mixed])
        of_platinum = np.repeat(numbers == PT, 3)
        assert not matrix[of_platinum].any() and not targets[of_platinum].any()
        assert matrix[~of_platinum].any()


def test_a_refit_follows_the_structures_that_weigh_more(potential, off_target):
    """Every structure twice, with contrary energies: each wins where its weight is larger."""
    few = off_target[:8]
    up = [s.with_labels(energy=s.energy + 0.2 * len(s)) for s in few]
    down = [s.with_labels(energy=s.energy - 0.2 * len(s)) for s in few]

    def errors_of_both(weight_up: float) -> tuple[float, float]:
        of_structures = np.repeat([weight_up, 1 / weight_up], len(few))
        copy = clone(potential)
        refit_readout(
            copy,
            HEAD,
            up + down,
            known=METALS,
            known_e0=METALS,
            config=CONFIG,
            weights=LabelWeights(of_structures, np.ones(119)),
        )
        return errors(copy, up)[0], errors(copy, down)[0]

    # weights also change how far the fit goes at all, so that only the ratio tells who wins
    up_error, down_error = errors_of_both(3.0)
    other_up_error, other_down_error = errors_of_both(1 / 3.0)
    assert up_error / down_error < 0.95 * other_up_error / other_down_error


@pytest.mark.parametrize(
    ("of_structures", "of_elements"),
    [
        (np.ones(1), np.ones(119)),
        (-np.ones(4), np.ones(119)),
        (np.ones(4), np.zeros(119)),
        (np.full(4, np.nan), np.ones(119)),
    ],
)
def test_weights_that_mean_nothing_are_refused(potential, off_target, of_structures, of_elements):
    weights = LabelWeights(of_structures, of_elements)
    with pytest.raises(WeightError):
        refitted(potential, off_target[:4], weights)


# --- linearity


def test_features_times_weights_are_the_energies_and_forces(potential, structures):
    """With all elements for new: shared weights, then each element's own."""
    levels = potential.config.levels_of_theory
    parts = [Batch.from_structure(s, 4.0, levels, torch.float64) for s in structures[::4]]
    batch = Batch.join(parts)
    elements = sorted(METALS)
    summed, jacobian, stress_jacobian = feature_jacobian(potential, batch, elements)

    readout = potential.readout
    own_weights = [readout.element_weight[HEAD, z] for z in elements]
    weights = torch.cat([readout.weight[HEAD], *own_weights]).detach()
    scale = float(potential.scale[HEAD])
    out = potential(batch)

    # what the readout does not give: E0 and the repulsion of the cores
    vectors, tiles = potential.edge_vectors(batch)
    core_energies, slope = potential.core_repulsion(batch, vectors, tiles)
    core_forces, core_stress = forces_and_stress(slope, vectors, tiles, batch)
    of_atoms = potential.e0[HEAD, batch.atomic_numbers] + core_energies.detach()
    rest = out.energy.new_zeros(batch.num_structures)
    rest.index_add_(0, batch.structure_index, of_atoms)

    energy = scale * summed @ weights + rest
    assert torch.allclose(out.energy, energy, rtol=0, atol=1e-11)
    forces = scale * torch.einsum("pna,p->na", jacobian, weights) + core_forces
    assert torch.allclose(out.forces, forces, rtol=0, atol=1e-11)
    stress = scale * torch.einsum("psab,p->sab", stress_jacobian, weights) + core_stress
    assert torch.isfinite(stress).all()
    assert torch.allclose(out.stress, stress, rtol=0, atol=1e-11, equal_nan=True)


def dense_problem(potential, structures, layout: Unknowns) -> tuple[np.ndarray, np.ndarray]:
    """Whitened rows and targets, from copies of the potential with one unknown changed each."""
    base_energy, base_forces = labels(potential, structures)
    columns = []
    for k in range(layout.num):
        changed = clone(potential)
        block, place = divmod(k, layout.size)
        with torch.no_grad():
            if k >= layout.num_weights:
                changed.e0[HEAD, layout.elements[k - layout.num_weights]] += 1.0
            elif block == 0:
                changed.readout.weight[HEAD, place] += 1.0
            else:
                changed.readout.element_weight[HEAD, layout.new_elements[block - 1], place] += 1.0
        energy, forces = labels(changed, structures)
        columns.append(np.concatenate([energy - base_energy, forces - base_forces]))

    num_atoms = np.array([len(s) for s in structures])
    energy_error = np.array([s.energy for s in structures]) - base_energy
    force_error = np.concatenate([s.forces.ravel() for s in structures]) - base_forces

    # the noise of a structure: the floor and its own error, added in squares
    of_component = np.repeat(np.arange(len(num_atoms)), 3 * num_atoms)
    mean_square = np.bincount(of_component, force_error**2) / (3 * num_atoms)
    per_atom = np.hypot(CONFIG.energy_noise, energy_error / num_atoms)
    energy_noise = num_atoms * per_atom
    force_noise = np.sqrt(CONFIG.force_noise**2 + mean_square)[of_component]

    noise = np.concatenate([energy_noise, force_noise])
    rows = np.array(columns).T / noise[:, None]
    targets = np.concatenate([energy_error, force_error]) / noise
    return rows, targets


def ridge_by_least_squares(rows, target, precision) -> np.ndarray:
    """The same problem without normal equations: the prior as further rows."""
    prior_rows = np.diag(np.sqrt(precision))
    prior_target = np.zeros(len(precision))
    augmented = np.vstack([rows, prior_rows])
    return np.linalg.lstsq(augmented, np.concatenate([target, prior_target]), rcond=None)[0]


def test_solution_is_that_of_dense_least_squares_and_its_gradient_vanishes(
    potential, structures, off_target, monkeypatch
):
    chosen = []

    def choose(folds, shared, own, fixed):
        chosen.append(3.0 * own + 30.0 * shared + fixed)
        one = Mixture(chosen[0][None], np.ones(1), chosen[0])
        return PriorChoice(one, 1.0, 1.0, {}, {})

    monkeypatch.setattr(noise_and_size, "choose_prior", choose)
    few = off_target[::3]
    elements = np.unique(np.concatenate([s.atomic_numbers for s in few]))
    layout = Unknowns(12, np.array([PT]), elements)
    rows, target = dense_problem(potential, few, layout)
    before = unknowns(potential, layout)
    potential_before = clone(potential)
    report, _ = refit_readout(
        potential, HEAD, few, known=METALS - {PT}, known_e0=METALS - {PT, 13}, config=CONFIG
    )
    change = unknowns(potential, layout) - before
    assert report.rows == len(target)
    assert report.relative_gradient < 1e-8

    precision = chosen[0]
    e0_precision = reference_precision(elements, METALS - {PT, 13})
    assert np.allclose(precision[layout.num_weights :], e0_precision)
    # ten times the RMS of the pretrained weights of all heads, which have scales of their own
    scale = potential.scale.detach().numpy()
    weights = scale[:, None] * potential_before.readout.weight.detach().numpy()
    width = 10 * np.sqrt((weights**2).mean()) / scale[HEAD]
    least = np.repeat([30.0, 3.0], layout.size) + width**-2
    assert np.allclose(precision[: layout.num_weights], least)
    gradient = rows.T @ (rows @ change - target) + precision * change
    assert np.linalg.norm(gradient) < 1e-8 * np.linalg.norm(rows.T @ target)
    dense = ridge_by_least_squares(rows, target, precision)
    assert np.allclose(change, dense, rtol=1e-6, atol=1e-8)
    assert np.abs(change).max() > 0.01


def unknowns(potential, layout: Unknowns) -> np.ndarray:
    """The values of a layout: shared weights, own weights, E0."""
    readout = potential.readout
    own = [readout.element_weight[HEAD, z] for z in layout.new_elements]
    e0 = potential.e0[HEAD, torch.as_tensor(layout.elements)]
    return torch.cat([readout.weight[HEAD], *own, e0]).detach().numpy().copy()


# --- what it finds


def test_each_label_has_its_own_share_of_the_rows_that_judge(potential, off_target, monkeypatch):
    """Many forces must not leave hardly any energy to judge by."""
    monkeypatch.setattr(refit, "MOST_JUDGING", len(off_target))
    elements = np.unique(np.concatenate([one.atomic_numbers for one in off_target]))
    parts, _ = refit.parts_of(off_target)
    folds, _ = refit.folds_of(
        potential,
        HEAD,
        off_target,
        parts,
        Unknowns(12, np.array([], dtype=int), elements),
        CONFIG,
        LabelWeights.equal(len(off_target)),
        by_directions=False,
    )
    energies = sum(len(fold.judging["energy"].targets) for fold in folds)
    forces = sum(len(fold.judging["forces"].targets) for fold in folds)
    assert energies == len(off_target)
    assert 0 < forces < 3 * sum(len(one) for one in off_target)


def test_perturbed_readout_is_found_again(potential, structures, labelled_by):
    target = labelled_by(perturbed(potential), structures)
    before = errors(potential, target)
    report, _ = refit_readout(potential, HEAD, target[::2], known=METALS, known_e0=set())
    _, left_out_forces = errors(potential, target[1::2])
    fitted_energies, _ = errors(potential, target[::2])
    # to a few tenths of a meV/A: forces are that small, and smaller errors are all the same
    assert left_out_forces < 0.03 * before[1]
    assert fitted_energies < 0.01 * before[0]
    assert report.error_after < 0.05 * report.error_before
    assert report.relative_gradient < 1e-8


def test_new_element_gets_weights_of_its_own(potential, structures, labelled_by):
    """Platinum of the target differs from all others; shared weights alone could not say so."""
    target = labelled_by(perturbed(potential, own=(PT,)), structures)
    together = clone(potential)
    apart = clone(potential)
    refit_readout(together, HEAD, target, known=METALS, known_e0=set())
    refit_readout(apart, HEAD, target, known=METALS - {PT}, known_e0=set())
    assert errors(apart, target)[1] < 0.1 * errors(together, target)[1]
    own = apart.readout.element_weight[HEAD] - potential.readout.element_weight[HEAD]
    assert own.abs().amax(1).nonzero().flatten().tolist() == [PT]


def test_far_off_structure_hardly_counts(potential, structures, labelled_by):
    """Its own residual is its noise: one step of reweighted least squares."""
    target = labelled_by(perturbed(potential), structures)
    rng = np.random.default_rng(0)
    broken = target[5].with_labels(
        energy=target[5].energy + 500.0, forces=rng.normal(0, 300, target[5].forces.shape)
    )
    refit_readout(potential, HEAD, [*target[:5], broken, *target[6:]], known=METALS, known_e0=set())
    rest = target[:5] + target[6:]
    fresh = perturbed(potential)  # other weights again, for the size of an unfitted error
    assert errors(potential, rest)[1] < 0.1 * errors(fresh, rest)[1]


def test_energies_alone_are_enough(potential, structures, labelled_by):
    target = [s.with_labels(forces=None) for s in labelled_by(perturbed(potential), structures)]
    before = errors(potential, target)[0]
    report, _ = refit_readout(potential, HEAD, target, known=METALS, known_e0=set())
    assert report.rows == len(target)
    assert errors(potential, target)[0] < 0.2 * before
    assert np.isfinite([report.error_before, report.error_after]).all()


def test_forces_alone_leave_the_reference_energies(potential, structures, labelled_by):
    target = labelled_by(perturbed(potential), structures)
    e0 = potential.e0.clone()
    before = errors(potential, target)[1]
    report, _ = refit_readout(
        potential, HEAD, [s.with_labels(energy=None) for s in target], known=METALS, known_e0=METALS
    )
    assert report.rows == sum(3 * len(s) for s in target)
    assert errors(potential, target)[1] < 0.05 * before
    assert torch.equal(potential.e0, e0)


def test_right_labels_change_nothing(potential, structures, labelled_by):
    own = labelled_by(potential, structures)
    refit_readout(potential, HEAD, own, known=METALS - {PT}, known_e0=set())
    assert max(errors(potential, own)) < 1e-7


def test_cross_validation_does_not_follow_noise(potential, structures, labelled_by):
    """Forces that are right on average: a left-out structure is predicted no worse than before."""
    rng = np.random.default_rng(2)
    own = labelled_by(potential, structures)
    noisy = [s.with_labels(forces=s.forces + rng.normal(0, 1.0, s.forces.shape)) for s in own[:6]]
    report, _ = refit_readout(potential, HEAD, noisy, known=METALS, known_e0=METALS)
    assert report.error_after <= report.error_before * (1 + 1e-9)
    assert errors(potential, own)[1] < 0.25  # of a noise of 0.8


def test_single_structure_works(potential, structures, labelled_by):
    target = labelled_by(perturbed(potential), structures[:1])
    before = errors(potential, target)
    report, _ = refit_readout(potential, HEAD, target, known=set(), known_e0=set())
    assert report.rows == 1 + 3 * len(target[0])
    assert all(np.isfinite(errors(potential, target)))
    assert errors(potential, target)[0] <= before[0]


def test_no_labels_at_all_are_refused(potential, structures):
    bare = [s.with_labels(energy=None, forces=None, stress=None) for s in structures[:3]]
    with pytest.raises(NothingToFitError, match="no structure has an energy, forces or stress"):
        refit_readout(potential, HEAD, bare, known=METALS, known_e0=METALS)


# --- what it leaves


def test_backbone_other_head_and_absent_elements_keep_their_bits(potential, off_target):
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    without_gold = [s for s in off_target if 79 not in s.atomic_numbers]
    refit_readout(
        potential, HEAD, without_gold, known=METALS - {PT, 79}, known_e0=set(), config=CONFIG
    )
    present = sorted({int(z) for s in without_gold for z in s.elements})
    for name, value in potential.state_dict().items():
        changed = (value != before[name]).nonzero()
        if name == "readout.weight":
            assert {head for head, _ in changed.tolist()} == {HEAD}
        elif name == "readout.element_weight":
            assert {(head, z) for head, z, _ in changed.tolist()} == {(HEAD, PT)}
        elif name == "e0":
            assert {head for head, _ in changed.tolist()} == {HEAD}
            assert sorted(z for _, z in changed.tolist()) == present
        else:
            assert len(changed) == 0, name


def test_refit_of_the_second_head_follows_its_own_scale(potential, structures, labelled_by):
    others = [replace(s, level_of_theory="EMT-scaled") for s in structures]
    target = clone(potential)
    with torch.no_grad():
        target.readout.weight[1] *= 1.2
    labelled = labelled_by(target, others)
    before = errors(potential, labelled)
    refit_readout(potential, 1, labelled, known=METALS, known_e0=METALS)
    assert errors(potential, labelled)[1] < 0.01 * before[1]
    assert torch.equal(potential.readout.weight[0], target.readout.weight[0])


def test_single_precision_model_is_refitted_as_well(potential, structures, labelled_by):
    target = labelled_by(perturbed(potential), structures)
    single = potential.float()
    before = errors(single, target)
    refit_readout(single, HEAD, target, known=METALS, known_e0=set())
    assert errors(single, target)[1] < 0.02 * before[1]
    assert single.readout.weight.dtype == torch.float32


# --- stress, noise, leave-one-out, posterior


def with_stress(potential, structures) -> list:
    """Structures with the potential's stress for their only label."""
    labelled = []
    for s in structures:
        stress = predict(potential, [s]).stress[0, ..., 1]
        if np.isfinite(stress).all():
            labelled.append(s.with_labels(energy=None, forces=None, stress=stress))
    return labelled


def stress_error(potential, structures) -> float:
    return summarise(predict(potential, structures), "test").stress_mae


def test_stress_alone_finds_the_readout_again(potential, structures):
    target = with_stress(perturbed(potential), structures)
    before = stress_error(potential, target)
    report, _ = refit_readout(potential, HEAD, target[::2], known=METALS, known_e0=METALS)
    assert report.rows == 6 * len(target[::2])
    assert stress_error(potential, target[1::2]) < 0.05 * before


def test_noise_of_forces_is_estimated(potential, structures, labelled_by):
    """Right forces with noise of 0.3 eV/A on top, far above the floor: found within a third."""
    rng = np.random.default_rng(6)
    noisy = [
        s.with_labels(
            forces=s.forces + rng.normal(0, 0.3, s.forces.shape),
            energy=s.energy + rng.normal(0, 0.02 * len(s)),
        )
        for s in labelled_by(potential, structures)
    ]
    report, _ = refit_readout(potential, HEAD, noisy, known=METALS, known_e0=METALS)
    assert report.noise["forces"] == pytest.approx(0.3, rel=0.34)
    assert 0.005 < report.noise["energy"] < 0.05
    assert "stress" not in report.noise


def test_leave_one_out_by_the_formula_equals_refitting_without_each_structure(
    potential, off_target, monkeypatch
):
    """By changing the potential and predicting each structure that was left out."""
    few = off_target[:6]
    known = METALS
    elements = np.unique(np.concatenate([s.atomic_numbers for s in few]))
    layout = Unknowns(12, np.array([], dtype=int), elements)
    precision = layout.pattern(shared=30.0, e0=reference_precision(elements, known))
    parts, _ = refit.parts_of(few)
    assert [len(part) for part in parts] == [1] * 6
    folds = []
    for part in parts:
        folds.append(Fold.empty(layout.num))
        own = [few[place] for place in part]
        for batch in design_rows(potential, HEAD, own, layout, CONFIG):
            folds[-1].add(batch)
    total = NormalEquations.total(fold.all for fold in folds)
    # the last candidate is that of no change
    candidates = np.array([precision, 1e20 * precision])
    solutions = prior._solutions_without_each(folds, total, candidates)
    errors = prior._absolute_errors(folds, solutions)

    # brute force: fit to the others, predict the one that was left out
    brute = []
    for k, left_out in enumerate(few):
        rows, target = dense_problem(potential, few[:k] + few[k + 1 :], layout)
        change = ridge_by_least_squares(rows, target, precision)
        copy = clone(potential)
        add_to_head(copy, HEAD, change, layout.new_elements, elements)

        energy, forces = labels(copy, [left_out])
        of_energy = abs(left_out.energy - energy[0]) / len(left_out)
        of_forces = np.abs(left_out.forces.ravel() - forces)
        brute.append([of_energy, of_forces.sum()])
    assert errors["energy"].errors[0] == pytest.approx([one[0] for one in brute], rel=1e-6)
    assert errors["forces"].errors[0] == pytest.approx([one[1] for one in brute], rel=1e-6)


def test_posterior_is_the_inverse_of_the_curvature_and_survives_the_disk(
    potential, off_target, tmp_path
):
    _, posterior = refit_readout(
        potential, HEAD, off_target, known=METALS - {PT}, known_e0=METALS, bootstrap=5
    )
    assert posterior.size == 12 and posterior.covariance.shape == (2 * 12 + 7, 2 * 12 + 7)
    assert (np.linalg.eigvalsh(posterior.covariance) > 0).all()
    assert posterior.bootstrap.shape == (5, 31)
    assert (posterior.bootstrap.std(0)[:24] > 0).all()

    loaded = Posterior.from_bytes(posterior.to_bytes())
    assert loaded.level_of_theory == "EMT"
    assert loaded.noise == posterior.noise
    assert loaded.new_elements.tolist() == [PT]
    assert np.array_equal(loaded.covariance, posterior.covariance)
    with pytest.raises(NoPosteriorError, match="has no posterior: make one with"):
        load_posterior(tmp_path / "nowhere")
