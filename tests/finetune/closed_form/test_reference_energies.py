"""E0 follows the labels where there are some, stays elsewhere, and never makes errors larger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.finetune.closed_form.reference_energies import (
    KNOWN_WIDTH,
    NoEnergyError,
    _parts,
    refit_reference_energies,
)
from evenfield.model_zoo.evaluation.evaluation import predict


AL, CU, PT = 13, 29, 78


def shifted(structures, shift: dict[int, float]) -> list:
    """The energies of `structures` with so many eV more for each atom of an element."""
    return [
        s.with_labels(energy=s.energy + sum(shift.get(int(z), 0.0) for z in s.atomic_numbers))
        for s in structures
    ]


@pytest.fixture
def own(potential, structures, labelled_by) -> list:
    """Structures with the potential's own labels."""
    return labelled_by(potential, structures)


def error(potential, structures) -> float:
    """MAE in eV/atom."""
    p = predict(potential, structures)
    return float(np.abs((p.energy[:, 0] - p.energy[:, 1]) / p.num_atoms).mean())


def crystals(structures, *numbers: int) -> list:
    return [s for s in structures if set(s.atomic_numbers) <= set(numbers)]


# --- free elements


def test_shift_of_another_code_is_found_element_by_element(potential, own):
    """A zero of energy that differs by thousands of eV, as between pseudopotentials."""
    elements = sorted({int(z) for s in own for z in s.elements})
    shift = {
        z: float(v) for z, v in zip(elements, np.linspace(-4000, 3000, len(elements)), strict=True)
    }
    before = potential.e0.clone()
    labelled = shifted(own, shift)
    report = refit_reference_energies(potential, 0, labelled, known=set())
    change = potential.e0 - before
    for z, value in shift.items():
        assert float(change[0, z]) == pytest.approx(value, rel=1e-5, abs=1e-2)
    assert report.mae_before > 100 and report.mae_after < 0.01
    assert report.mae_after == pytest.approx(error(potential, labelled), abs=1e-6)
    assert report.undetermined == []
    untouched = torch.ones(119, dtype=torch.bool)
    untouched[elements] = False
    assert (change[0, untouched] == 0).all() and (change[1] == 0).all()


def test_right_labels_change_nothing(potential, own):
    report = refit_reference_energies(potential, 0, own, known=set())
    assert max(abs(v) for v in report.shifts.values()) < 1e-8
    assert report.mae_before < 1e-8


def test_structures_without_energy_are_passed_over(potential, own):
    silent = [s.with_labels(energy=None) for s in own[::2]]
    report = refit_reference_energies(
        potential, 0, [*shifted(own[1::2], dict.fromkeys(range(119), 2.0)), *silent], set()
    )
    assert all(value == pytest.approx(2.0, abs=1e-4) for value in report.shifts.values())
    with pytest.raises(NoEnergyError, match="no structure has an energy"):
        refit_reference_energies(potential, 0, silent, set())


# --- known elements


def test_known_element_is_held_and_the_unknown_partner_takes_the_shift(potential, own):
    """Copper-platinum alone leaves E0 undetermined: the element that was known keeps its own."""
    alloy = replace(own[0], atomic_numbers=np.array([CU, CU, PT, PT]))
    labelled = [alloy.with_labels(energy=float(predict_total(potential, alloy)) + 10.0)]
    report = refit_reference_energies(potential, 0, labelled, known={CU})
    assert abs(report.shifts["Cu"]) < 0.01
    assert report.shifts["Pt"] == pytest.approx(5.0, abs=0.01)
    assert report.undetermined == []


def test_known_element_yields_to_many_structures_only(potential, own):
    """By the posterior mean of a Gaussian prior of 0.3 eV and a noise of 0.1 eV/atom."""
    copper = crystals(own, CU)
    assert len(copper) >= 2
    for num, start in ((1, potential.e0.clone()), (len(copper), potential.e0.clone())):
        potential.e0.copy_(start)
        report = refit_reference_energies(
            potential, 0, shifted(copper[:num], {CU: 1.0}), known={CU}
        )
        data, prior = num / 0.1**2, KNOWN_WIDTH**-2
        assert report.shifts["Cu"] == pytest.approx(data / (data + prior), rel=1e-6)
        potential.e0.copy_(start)


# --- undetermined elements


def test_elements_that_always_come_together_are_named(potential, own):
    alloy = replace(own[0], atomic_numbers=np.array([CU, CU, PT, PT]))
    labelled = [alloy.with_labels(energy=float(predict_total(potential, alloy)) + 10.0)]
    report = refit_reference_energies(potential, 0, labelled, known=set())
    assert sorted(report.undetermined) == ["Cu", "Pt"]
    assert (
        report.shifts["Cu"] == pytest.approx(2.5) == report.shifts["Pt"]
    )  # the least change that fits
    assert report.mae_after < 1e-6


def test_elements_of_their_own_are_not_named(potential, own):
    alloy = replace(own[0], atomic_numbers=np.array([CU, CU, PT, PT]))
    labelled = [
        alloy.with_labels(energy=float(predict_total(potential, alloy))),
        *crystals(own, CU),
    ]
    assert refit_reference_energies(potential, 0, labelled, known=set()).undetermined == []


def predict_total(potential, structure) -> float:
    numbers = torch.as_tensor(structure.atomic_numbers)
    return float(predict(potential, [structure]).energy[0, 1] + potential.e0[0, numbers].sum())


# --- never worse


@pytest.mark.parametrize("known", [set(), {AL, 28, CU, 46, 47, PT, 79}], ids=["free", "known"])
def test_one_far_off_structure_does_not_make_the_others_worse(potential, own, known):
    """Least squares would move all for its sake: the mean absolute error would rise."""
    copper = crystals(own, CU)
    labelled = [*copper[:-1], copper[-1].with_labels(energy=copper[-1].energy + 40.0)]
    before = error(potential, labelled)
    report = refit_reference_energies(potential, 0, labelled, known)
    assert report.mae_after <= report.mae_before == pytest.approx(before)
    assert error(potential, labelled) == pytest.approx(report.mae_after, abs=1e-9)


def test_a_fit_that_is_worse_on_held_out_structures_is_not_kept(potential, own):
    """Noise of a few structures would become a shift of E0, and an error of all others."""
    copper = crystals(own, CU)
    train = shifted(copper[:1], {CU: 0.5})
    held_out = copper[1:]
    before = potential.e0.clone()

    report = refit_reference_energies(potential, 0, train, known={CU}, held_out=held_out)
    assert report.narrowed
    assert error(potential, held_out) < 1e-6
    assert torch.equal(potential.e0, before)

    # held-out structures that agree let the same shift through
    agreeing = shifted(held_out, {CU: 0.5})
    report = refit_reference_energies(potential, 0, train, known={CU}, held_out=agreeing)
    assert not report.narrowed and report.shifts["Cu"] > 0.4


def test_without_held_out_structures_each_is_left_out_in_turn(potential, own):
    """Three numbers fitted to three noisy energies lower their error, and nobody else's."""
    elements = sorted({int(z) for s in own for z in s.elements})
    noise = np.random.default_rng(1).normal(0.0, 0.3, len(own))
    noisy = [s.with_labels(energy=s.energy + len(s) * e) for s, e in zip(own, noise, strict=True)]
    report = refit_reference_energies(potential, 0, noisy, known=set(elements))
    assert report.mae_after <= report.mae_before
    # the labels are right on average, so E0 may not move far
    assert error(potential, own) < 0.15


# --- isolated atoms


def atom_like(potential, structure, z: int, offset: float):
    """An isolated atom whose label is the potential's own energy, plus `offset` in eV."""
    atom = replace(
        structure,
        atomic_numbers=np.array([z]),
        positions=np.zeros((1, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        structure_id=f"atom-{z}",
        labels={},
    )
    return atom.with_labels(energy=predict_total(potential, atom) + offset)


def test_isolated_atoms_decide_where_nothing_else_does(potential, own):
    """Cells of one ratio leave the difference of two E0 open: the atoms close it."""
    alloy = replace(own[0], atomic_numbers=np.array([CU, CU, PT, PT]))
    cells = [alloy.with_labels(energy=predict_total(potential, alloy) + 2 * 3.0 + 2 * 9.0)]
    atoms = [atom_like(potential, own[0], CU, 3.0), atom_like(potential, own[0], PT, 9.0)]

    report = refit_reference_energies(potential, 0, [*cells, *atoms], known=set())
    assert report.undetermined == []
    assert report.shifts["Cu"] == pytest.approx(3.0, abs=1e-3)
    assert report.shifts["Pt"] == pytest.approx(9.0, abs=1e-3)
    assert report.isolated_atoms == pytest.approx({"Cu": 0.0, "Pt": 0.0}, abs=1e-3)


def test_isolated_atoms_that_the_model_does_not_know_leave_the_crystals_alone(potential, own):
    """A model of condensed matter is wrong about atoms by electron volts, and they are named."""
    copper = shifted(crystals(own, CU), {CU: 5.0})
    atom = atom_like(potential, own[0], CU, 8.0)

    report = refit_reference_energies(potential, 0, [atom, *copper], known=set())
    assert error(potential, copper) < 0.1
    assert report.isolated_atoms["Cu"] == pytest.approx(3.0, abs=0.1)


def test_copies_of_one_object_are_left_out_together(train_structures) -> None:
    one, other = train_structures[:2]
    parts = _parts([one, other, one])
    assert [part.tolist() for part in parts] == [[0, 2], [1]]
