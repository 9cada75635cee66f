"""The record of uncertainty: made from data, kept with the weights, dropped by a fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from typer.testing import CliRunner

from evenfield import model_zoo
from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.closed_form.committee import Committee, committee_of_readouts
from evenfield.finetune.closed_form.folds import Fold
from evenfield.finetune.closed_form.prior import Mixture
from evenfield.finetune.closed_form.refit import _without_each, refit_readout
from evenfield.finetune.closed_form.ridge import NormalEquations
from evenfield.finetune.heads import add_to_head
from evenfield.finetune.safety import uncertainty
from evenfield.finetune.safety.trust import attach_trust, recalibrate
from evenfield.finetune.safety.uncertainty import (
    TooFewStructuresError,
    calibrated,
    make_uncertainty,
    observe,
    principal_directions,
    uncertainty_of_refit,
    with_spread,
)
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.uncertainty.distances import ElementGaussians
from evenfield.model_zoo.uncertainty.record import UNCERTAINTY, LevelUncertainty


METALS = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
KNOWN = {atomic_numbers[symbol] for symbol in METALS}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set of the tests has some ten held-out structures."""
    monkeypatch.setattr(uncertainty, "FEWEST_STRUCTURES", 3)
    monkeypatch.setattr(uncertainty, "FEWEST_SCORES", 12)
    monkeypatch.setattr(uncertainty, "FEWEST_GROUPS", 3)


def tiny(levels: list[str]) -> Potential:
    config = PotentialConfig(
        channels=4, l_max=1, cutoff=4.0, readout_size=8, radial_hidden=8, levels_of_theory=levels
    )
    return Potential(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untrained model of the data's levels and elements."""
    record = ModelRecord(
        name="metals",
        elements={"EMT": METALS, "EMT-scaled": METALS},
        default_level="EMT",
    )
    return model_zoo.save_model(tmp_path / "model", tiny(["EMT", "EMT-scaled"]), record)


@pytest.fixture
def of_emt(train_structures: list[Structure]) -> list[Structure]:
    return [one for one in train_structures if one.level_of_theory == "EMT"]


def test_record_covers_what_it_was_calibrated_on(of_emt: list[Structure]) -> None:
    """By counting: at least the stated share of the held-out atoms, in every group."""
    potential = tiny(["EMT"]).eval()
    train, held_out = of_emt[::2], of_emt[1::2]
    own = make_uncertainty(potential, "EMT", train, held_out, known=KNOWN, split="valid")
    seen = observe(potential, own, held_out)
    spread = own.spread(seen.ingredients, seen.numbers)
    place = own.group_of(seen.numbers)
    assert len(own.groups) > 1
    for coverage in (0.5, 0.8):
        covered = seen.error <= own.force_quantiles(coverage)[place] * spread * (1 + 1e-6)
        for index in range(len(own.groups)):
            share = covered[place == index].mean()
            assert coverage <= share <= coverage + 2 / (place == index).sum() + 1e-9
    # a third of the errors are larger than one deviation, of energies too
    assert np.mean(np.abs(seen.energy_error) <= seen.energy_deviation) == pytest.approx(
        0.683, abs=0.1
    )
    assert 0.9 < seen.inside.mean() < 1.0 or seen.inside.all()
    assert own.stress is not None
    size = own.stress.spread(seen.stress_ingredients)
    number = own.stress.scores.number
    # those that are not periodic have none
    has_stress = np.isfinite(seen.stress_error)
    assert number == has_stress.sum() < len(held_out)
    for coverage in (0.5, 0.8):
        radius = own.stress.scores.quantile(coverage) * size * (1 + 1e-6)
        share = (seen.stress_error <= radius)[has_stress].mean()
        assert coverage <= share <= coverage + 2 / number


def test_error_of_the_stress_is_that_of_its_tensor(of_emt: list[Structure]) -> None:
    """Off-diagonal components count twice; a structure without the label has no error."""
    potential = tiny(["EMT"]).eval()
    own = make_uncertainty(potential, "EMT", of_emt[::2], of_emt[1::2], known=KNOWN, split="valid")
    one = of_emt[0]
    bare = replace(one, labels={k: v for k, v in one.labels.items() if k != "stress"})
    seen = observe(potential, own, [one, bare])
    batch = Batch.from_structure(one, 4.0, ["EMT"], torch.float32)
    with torch.no_grad():
        predicted = potential(batch).stress[0].double().numpy()
    difference = predicted - batch.labels["stress"][0].double().numpy()
    expected = np.sqrt(np.trace(difference @ difference.T))
    assert seen.stress_error[0] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(seen.stress_error[1]) and np.isfinite(seen.stress_ingredients).all()


def test_powers_of_the_stress_are_found_and_few_labels_give_none(
    of_emt: list[Structure],
) -> None:
    potential = tiny(["EMT"]).eval()
    own = make_uncertainty(potential, "EMT", of_emt[::2], of_emt[1::2], known=KNOWN, split="valid")
    seen = observe(potential, own, of_emt)
    rng = np.random.default_rng(0)
    number = 3000
    ingredients = rng.lognormal(-3, 1.0, (4, number))
    error = ingredients[0] ** 0.6 * ingredients[1] ** 0.3 * rng.lognormal(0, 0.3, number)
    made = replace(
        seen,
        stress_error=error,
        stress_ingredients=ingredients,
        groups=np.arange(number).astype(str),
        energy_error=np.ones(number),
        energy_deviation=np.ones(number),
    )
    shaped = with_spread(own, made)
    assert shaped.stress is not None
    assert shaped.stress.exponents == pytest.approx([0.6, 0.3, 0.0, 0.0], abs=0.05)
    # quantiles of the noise that was put in: exp(0.3 * 1.2816) at 90 % against the median
    scores = calibrated(shaped, made).stress
    assert scores is not None
    ratio = scores.scores.quantile(0.9) / scores.scores.quantile(0.5)
    assert ratio == pytest.approx(np.exp(0.3 * 1.2816), rel=0.05)

    few = np.where(np.arange(number) < 2, error, np.nan)
    assert calibrated(shaped, replace(made, stress_error=few)).stress is None
    assert with_spread(own, replace(made, stress_error=few)).stress is None


def test_held_out_structures_without_a_stress_give_the_other_radii(
    folder: Path, data_set: Path, tmp_path: Path
) -> None:
    parts = []
    for split in ("train", "valid"):
        for structure in iter_structures(data_set, split):
            labels = dict(structure.labels)
            if split == "valid":
                labels.pop("stress", None)
            parts.append(replace(structure, split=split, labels=labels))
    write_data_set(parts, tmp_path / "bare", {"file": "bare", "sha256": "bare"}, ConvertConfig())
    assert UNCERTAINTY in attach_trust(folder, tmp_path / "bare")
    own = model_zoo.load(folder).uncertainties["EMT"]
    assert own.stress is None and np.isfinite(own.force_quantiles(0.5)).all()


def test_spread_finds_powers_that_made_the_errors(of_emt: list[Structure]) -> None:
    """Errors that are a product of powers, times a factor of each element and noise."""
    potential = tiny(["EMT"]).eval()
    draft = make_uncertainty(potential, "EMT", of_emt[::2], of_emt, known=KNOWN, split="valid")
    seen = observe(potential, draft, of_emt[:2])
    rng = np.random.default_rng(0)
    number = 4000
    ingredients = rng.lognormal(0, 1.0, (4, number))
    numbers = rng.choice([29, 79], number)
    error = ingredients[0] ** 0.7 * ingredients[3] ** 0.4 * np.where(numbers == 29, 1.0, 3.0)
    error = error * rng.lognormal(0, 0.3, number)
    made = replace(
        seen,
        numbers=numbers,
        ingredients=ingredients,
        force_error=error[:, None] * np.array([[0.6, 0.8, 0.0]]),
    )
    fitted = with_spread(draft, made)
    assert fitted.exponents == pytest.approx([0.7, 0.0, 0.0, 0.4], abs=0.05)
    assert fitted.offsets[79] - fitted.offsets[29] == pytest.approx(np.log(3), abs=0.05)
    # an ingredient that goes against the errors is left out, and never turned around
    against = with_spread(draft, replace(made, ingredients=1 / ingredients))
    assert (against.exponents >= 0).all() and against.exponents.max() < 0.05

    # a committee that agrees up to rounding had a power of 1e11, and infinite radii
    rounding = ingredients.copy()
    rounding[1] = 1e-14 * ingredients[0]
    agreeing = with_spread(draft, replace(made, ingredients=rounding))
    assert agreeing.exponents == pytest.approx([0.7, 0.0, 0.0, 0.4], abs=0.05)
    assert agreeing.exponents[1] == 0.0


def test_directions_hold_the_largest_part_of_the_committee() -> None:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(8, 8))
    committee = Committee(
        level_of_theory="EMT",
        covariance=square @ square.T + np.eye(8),
        members=rng.normal(size=(5, 1)) * rng.normal(size=(1, 8)) + 1e-9 * rng.normal(size=(5, 8)),
        elements=np.empty(0, int),
    )
    directions, mixing = principal_directions(committee)
    # members on one line need one direction, whatever the measure
    assert np.allclose(mixing @ directions, committee.members, atol=1e-7)
    variance = np.square(committee.members).mean(0)
    assert np.allclose(np.square(directions).sum(0), variance, atol=1e-7)


def test_members_differ_where_the_prior_of_a_refit_says_that_nothing_moves(
    of_emt: list[Structure],
) -> None:
    potential = tiny(["EMT"]).eval()
    committee = committee_of_readouts(potential, 0, of_emt, known_e0=KNOWN, members=6)
    assert committee.members.shape == (6, 8)
    assert np.isfinite(committee.members).all()
    assert committee.members.std(0).max() > 1e-3
    np.linalg.cholesky(committee.covariance)


def test_attach_writes_it_and_more_levels_stand_next_to_it(folder: Path, data_set: Path) -> None:
    assert UNCERTAINTY in attach_trust(folder, data_set)
    model = model_zoo.load(folder)
    assert list(model.uncertainties) == ["EMT"]
    first = model.uncertainties["EMT"]
    assert first.gaussians.elements.tolist() == sorted(KNOWN)

    words = ["finetune", "attach", str(folder), str(data_set), "--level-of-theory"]
    done = CliRunner().invoke(app, [*words, "EMT-scaled", "--calibrate-on", "test"])
    assert done.exit_code == 0, done.output
    both = model_zoo.load(folder).uncertainties
    assert list(both) == ["EMT", "EMT-scaled"]
    assert both["EMT-scaled"].calibrated_on == "test"
    assert np.array_equal(both["EMT"].directions, first.directions)
    with pytest.raises(DestinationError, match="already has the uncertainty of EMT-scaled"):
        attach_trust(folder, data_set, level_of_theory="EMT-scaled")

    # other weights make it void, whoever changed them
    potential, record = model_zoo.load_model(folder)
    potential.e0[0, 29] += 0.1
    attachments = dict(model_zoo.load(folder).attachments)
    model_zoo.save_model(folder, potential, record, attachments=attachments)
    assert model_zoo.load(folder).uncertainties == {}


def test_scales_alone_are_renewed_from_structures_of_another_kind(
    folder: Path, data_set: Path, tmp_path: Path
) -> None:
    """Structures of another kind: errors five times as large want radii five times as large."""
    attach_trust(folder, data_set)
    model = model_zoo.load(folder)
    before = model.uncertainties["EMT"]
    held_out = [one for one in iter_structures(data_set, "test") if one.level_of_theory == "EMT"]
    seen = observe(model.potential, before, held_out)
    moved = []
    first = 0
    for one in held_out:
        atoms = slice(first, first + len(one))
        first += len(one)
        labels = one.labels | {"forces": one.forces + 4 * -seen.force_error[atoms]}
        moved.append(replace(one, labels=labels, split="test"))
    # a data set has a structure to train on, which has no part in this
    other = next(one for one in iter_structures(data_set, "train") if one.level_of_theory == "EMT")
    for name, structures in (("same", held_out), ("moved", moved)):
        parts = [replace(other, split="train"), *(replace(one, split="test") for one in structures)]
        write_data_set(parts, tmp_path / name, {"file": name, "sha256": name}, ConvertConfig())

    found = {}
    for name in ("same", "moved"):
        words = ["finetune", "attach", str(folder), str(tmp_path / name), "--level-of-theory"]
        options = ["EMT", "--calibrate-on", "test", "--recalibrate"]
        done = CliRunner().invoke(app, [*words, *options])
        assert done.exit_code == 0, done.output
        found[name] = model_zoo.load(folder).uncertainties["EMT"]
        assert found[name].calibrated_on == "test"
        for kept in ("directions", "factor", "exponents", "floors"):
            assert np.array_equal(getattr(found[name], kept), getattr(before, kept)), kept
        assert np.array_equal(found[name].gaussians.means, before.gaussians.means)
        if name == "moved":
            seen = replace(seen, force_error=5 * seen.force_error)
        spread = found[name].spread(seen.ingredients, seen.numbers)
        place = found[name].group_of(seen.numbers)
        covered = seen.error <= found[name].force_quantiles(0.8)[place] * spread * (1 + 1e-5)
        assert 0.8 <= covered.mean() <= 0.9
    ratio = np.exp(found["moved"].offsets - found["same"].offsets)
    assert ratio == pytest.approx(np.full(119, 5.0), rel=1e-4)
    # no scale is counted twice
    assert found["moved"].energy_scale == pytest.approx(found["same"].energy_scale, rel=1e-5)

    with pytest.raises(EvenfieldError, match="no record of the uncertainty of EMT-scaled"):
        recalibrate(folder, tmp_path / "same", level_of_theory="EMT-scaled")
    with pytest.raises(TooFewStructuresError, match="0 held-out structures at EMT"):
        recalibrate(folder, tmp_path / "same")


def test_too_few_held_out_structures_are_told(
    folder: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainty, "FEWEST_STRUCTURES", 1000)
    told: list[str] = []
    assert UNCERTAINTY not in attach_trust(folder, data_set, say=told.append)
    assert len(told) == 1 and "too few" in told[0] and "at EMT" in told[0]


def test_data_without_a_validation_split_give_the_other_files(
    folder: Path, sets: dict[str, Path]
) -> None:
    told: list[str] = []
    assert attach_trust(folder, sets["base"], say=told.append) == [
        "posterior.safetensors",
        "probe.extxyz",
    ]
    assert len(told) == 1 and "0 held-out structures at EMT are too few" in told[0]


@pytest.mark.parametrize(("name", "missing"), [("energy", "an energy"), ("forces", "forces")])
def test_held_out_structures_that_lack_a_label_give_the_other_files(
    folder: Path, data_set: Path, tmp_path: Path, name: str, missing: str
) -> None:
    """Without energies, a quantile of nothing ended the command as a bug."""
    parts = []
    for split in ("train", "valid"):
        for structure in iter_structures(data_set, split):
            labels = dict(structure.labels)
            if split == "valid":
                labels.pop(name, None)
            parts.append(replace(structure, split=split, labels=labels))
    write_data_set(parts, tmp_path / "bare", {"file": "bare", "sha256": "bare"}, ConvertConfig())
    told: list[str] = []
    written = attach_trust(folder, tmp_path / "bare", say=told.append)
    assert "posterior.safetensors" in written and UNCERTAINTY not in written
    assert f"no held-out structure at EMT has {missing}" in " ".join(told)


def test_a_fine_tuning_leaves_the_record_behind_and_says_so(
    folder: Path, sets: dict[str, Path], data_set: Path, tmp_path: Path
) -> None:
    attach_trust(folder, data_set)
    words = ["finetune", str(folder), str(sets["platinum"]), str(tmp_path / "tuned")]
    done = CliRunner().invoke(app, [*words, "strategy=refit"])
    assert done.exit_code == 0, done.output
    assert "without a record of uncertainty" in done.output
    tuned = model_zoo.load(tmp_path / "tuned")
    assert tuned.uncertainties == {} and UNCERTAINTY not in tuned.attachments


def test_only_the_level_of_the_record_answers(folder: Path, data_set: Path) -> None:
    attach_trust(folder, data_set)
    own: LevelUncertainty = model_zoo.load(folder).uncertainties["EMT"]
    # what no structure had is infinitely far, and its spread infinite
    ingredients = np.ones((4, 2))
    ingredients[3, 1] = np.inf
    spread = own.spread(ingredients, np.array([29, 8]))
    assert np.isfinite(spread[0]) and np.isinf(spread[1])


def test_radii_of_a_refit_are_those_of_refits_without_each_part(of_emt: list[Structure]) -> None:
    """Left-out errors by normal equations of the others, and their coverage by counting."""
    potential = tiny(["EMT"]).eval()
    structures = of_emt[:14]
    _, posterior = refit_readout(potential, 0, structures, known=KNOWN, known_e0=KNOWN)
    left_out = posterior.left_out
    assert left_out is not None
    assert sorted(place for part in left_out.parts for place in part) == list(range(14))

    own = uncertainty_of_refit(potential, structures, posterior)
    assert own.calibrated_on == "structures left out of the refit"
    of_atom = np.repeat(np.arange(14), [len(structure) for structure in structures])
    features, numbers = uncertainty.atom_features(potential, structures)
    seen = []
    for part, change in zip(left_out.parts, left_out.changes, strict=True):
        other = tiny(["EMT"]).eval()
        other.load_state_dict(potential.state_dict())
        add_to_head(other, 0, change, posterior.new_elements, posterior.elements)
        others = ~np.isin(of_atom, part)
        gaussians = ElementGaussians.of(features[others], numbers[others])
        without = replace(own, gaussians=gaussians)
        seen.append(observe(other, without, [structures[place] for place in part]))
    scores = np.concatenate([one.error / own.spread(one.ingredients, one.numbers) for one in seen])
    place = own.group_of(np.concatenate([one.numbers for one in seen]))
    # an element of one part alone is unknown to the others, and has no score
    known = scores > 0
    for coverage in (0.5, 0.8):
        covered = scores[known] <= own.force_quantiles(coverage)[place[known]] * (1 + 1e-5)
        assert coverage <= covered.mean() <= coverage + 0.1
    # the stress of refits is scored in the same way
    periodic = sum(bool(structure.pbc.all()) for structure in structures)
    assert own.stress is not None and own.stress.scores.number == periodic
    # what was left out is less well known than what was learned
    learned = observe(potential, own, structures)
    total = np.sqrt(np.mean(np.concatenate([one.error for one in seen]) ** 2))
    assert total > np.sqrt(np.mean(learned.error**2))


def test_leaving_a_fold_out_is_a_fit_to_the_others() -> None:
    rng = np.random.default_rng(0)
    folds = []
    for _ in range(4):
        fold = Fold.empty(3)
        fold.equations["forces"].add(rng.normal(size=(9, 3)), rng.normal(size=9))
        folds.append(fold)
    precision = np.array([0.1, 0.2, 0.3])
    total = NormalEquations.total(fold.all for fold in folds)
    found = _without_each(folds, total, Mixture(precision[None], np.ones(1), precision))
    for index, solution in enumerate(found):
        others = [fold.all for number, fold in enumerate(folds) if number != index]
        matrix = sum(one.matrix for one in others) + np.diag(precision)
        expected = np.linalg.solve(matrix, sum(one.moment for one in others))
        assert np.allclose(solution, expected, rtol=1e-9)


def test_a_bounded_fit_that_ends_on_its_bounds() -> None:
    """These rows, of a loop with ten labelled atoms, made SciPy multiply inf by zero.

    Fewer digits do not. The columns are logarithms of two ingredients, and the target.
    """
    numbers = [
        (-3.817937996, 0.957299372, -1.077460069),
        (-3.825644578, 0.941753107, -0.914395484),
        (-3.844777175, 0.961217376, -1.288805584),
        (-3.798743668, 0.933378561, -0.787865353),
        (-3.586602488, 2.915057092, 0.51327551),
        (-3.54001394, 3.290304492, 1.052838656),
        (-3.523657283, 3.46547821, 1.200911764),
        (-3.617969352, 2.990442504, 0.732918739),
        (-3.267843491, 5.073316649, 0.060343142),
        (-3.338974646, 5.095250173, 0.904954466),
    ]
    first, second, target = np.array(numbers).T
    rows = np.column_stack([first, second, np.ones(10), np.ones(10)])
    # the ridge of the offset of the only element
    rows = np.vstack([rows, [0, 0, 0, 20**0.5]])
    target = np.append(target, 0)
    lower = np.array([0, 0, -np.inf, -np.inf])
    found = uncertainty._bounded_least_squares(rows, target, lower)
    assert (found >= lower).all()
    # the conditions of Karush, Kuhn and Tucker: no slope inside, none that leads away from a bound
    slope = rows.T @ (rows @ found - target)
    free = found > lower
    assert np.abs(slope[free]).max() < 1e-9
    assert (slope[~free] > -1e-9).all()


def test_a_column_without_effect_does_not_disturb_a_bounded_fit() -> None:
    """An ingredient that is the same for all atoms: SciPy multiplied an infinite step by zero."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 4))
    rows[:, 1] = 0.0
    truth = np.array([0.7, 0.0, 0.0, -2.0])
    lower = np.array([0.0, 0.0, 0.0, -np.inf])
    found = uncertainty._bounded_least_squares(rows, rows @ truth, lower)
    assert found == pytest.approx(truth, abs=1e-6)
