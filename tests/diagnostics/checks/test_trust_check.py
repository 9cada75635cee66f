"""`evenfield check trust`: coverage and order of errors, on errors whose truth is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from PIL import Image
from scipy.stats import norm
from typer.testing import CliRunner

from evenfield import model_zoo
from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.check import CheckedModel, CheckError, Figure
from evenfield.diagnostics.checks import trust
from evenfield.finetune.safety import uncertainty
from evenfield.finetune.safety.trust import attach_trust
from evenfield.finetune.safety.uncertainty import (
    Observed,
    TooFewStructuresError,
    calibrated,
    with_spread,
)
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.package.folder import attach
from evenfield.model_zoo.uncertainty.conformal import Scores
from evenfield.model_zoo.uncertainty.coverage import TRUST, coverages_of
from evenfield.model_zoo.uncertainty.distances import ElementGaussians
from evenfield.model_zoo.uncertainty.record import LevelUncertainty, StressUncertainty


METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")


def made_up() -> LevelUncertainty:
    """The spread is the second ingredient; nothing is calibrated yet."""
    features = np.random.default_rng(0).normal(size=(100, 4))
    return LevelUncertainty(
        level="EMT",
        calibrated_on="valid",
        factor=np.eye(6),
        e0_elements=np.array([29, 79]),
        directions=np.ones((1, 4)),
        mixing=np.ones((3, 1)),
        gaussians=ElementGaussians.of(features, np.repeat([29, 79], 50)),
        exponents=np.array([0.0, 1.0, 0.0, 0.0]),
        offsets=np.zeros(119),
        floors=np.full(4, 1e-9),
        groups=[np.empty(0, int)],
        force_scores=[],
        energy_scores=Scores.of(np.empty(0), 0),
        energy_scale=1.0,
        alignment=0.0,
        stress=StressUncertainty(
            exponents=np.array([0.0, 1.0, 0.0, 0.0]),
            floors=np.full(4, 1e-9),
            offset=0.0,
            scores=Scores.of(np.empty(0), 0),
        ),
    )


def drawn(seed: int, *, wrong: float = 1.0, num_structures: int = 400) -> Observed:
    """Gaussian errors of copper and gold in structures of 10 atoms; those of gold times `wrong`."""
    rng = np.random.default_rng(seed)
    structure_index = np.repeat(np.arange(num_structures), 10)
    numbers = rng.choice([29, 79], 10 * num_structures)
    deviation = rng.lognormal(-2, 1, len(numbers))
    ingredients = np.stack([rng.lognormal(size=len(numbers)) for _ in range(4)])
    ingredients[1] = deviation * 3**0.5
    factor = np.where(numbers == 79, wrong, 1.0)
    error = rng.normal(size=(len(numbers), 3)) * (deviation * factor)[:, None]
    # of their own, so that the numbers above stay what they are
    of_stress = np.random.default_rng([seed, 1])
    stress_ingredients = of_stress.lognormal(-4, 1, (4, num_structures))
    return Observed(
        numbers=numbers,
        structure_index=structure_index,
        groups=np.array([f"group {index}" for index in range(num_structures)]),
        force_error=error,
        label_size=ingredients[0],
        ingredients=ingredients,
        shares=np.full((len(numbers), 3), 1 / 3),
        disagreement=ingredients[1],
        inside=np.ones(len(numbers), bool),
        energy_error=rng.normal(size=num_structures),
        energy_deviation=np.ones(num_structures),
        stress_error=np.abs(of_stress.normal(size=num_structures)) * stress_ingredients[1],
        stress_ingredients=stress_ingredients,
    )


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_errors_as_predicted_pass_and_larger_ones_of_one_element_do_not() -> None:
    own = calibrated(made_up(), drawn(0, num_structures=1500))
    assert [elements.tolist() for elements in own.groups] == [[29], [79], []]
    good = by_name(trust.judged(own, drawn(1))[0])
    assert all(figure.passed for figure in good.values())
    assert good["coverage of 90 %, all atoms"].value == pytest.approx(90, abs=1.5)
    # the RMS length of the error is the spread, which the scale of the ingredient already was
    assert own.offsets[29] == pytest.approx(0, abs=0.05)
    # |error|^2 / deviation^2 has three degrees of freedom: 6.25 at 90 %
    quantile = own.force_quantiles(0.9)[0] * np.exp(own.offsets[29])
    assert quantile == pytest.approx((6.25 / 3) ** 0.5, rel=0.03)

    # the errors of the stress are half-normal: 1.645 deviations at 90 %
    assert own.stress is not None
    assert own.stress.scores.quantile(0.9) == pytest.approx(1.645, rel=0.05)
    assert good["coverage of 90 % of stress"].value == pytest.approx(90, abs=4)
    assert good["rank correlation of spread, stress"].value > 0.6
    assert abs(good["rank correlation of distance, stress"].value) < 0.15

    bad = by_name(trust.judged(own, drawn(1, wrong=1.5))[0])
    worst = "coverage of 90 % further from it than tolerance, worst group"
    assert not bad[worst].passed
    assert bad["coverage of 90 %, Au"].value < 80 < bad["coverage of 90 %, Cu"].value


def test_a_spread_without_order_fails() -> None:
    seen = drawn(2)
    shuffled = replace(seen, force_error=np.random.default_rng(0).permutation(seen.force_error))
    own = calibrated(made_up(), shuffled)
    figures = by_name(trust.judged(own, shuffled)[0])
    assert not figures["rank correlation of spread, inside"].passed
    assert figures["AUROC of spread for the worst 10 %"].value == pytest.approx(0.5, abs=0.05)


def test_another_chemistry_is_told_by_its_distance() -> None:
    own = calibrated(made_up(), drawn(0))
    seen = drawn(1)
    far = replace(seen, ingredients=seen.ingredients * np.array([[1], [1], [1], [50]]))
    figures = by_name(trust.told_apart(own, seen, far, "far")[0])
    assert figures["AUROC of distance, far"].passed
    same = by_name(trust.told_apart(own, seen, drawn(3), "same")[0])
    assert not same["AUROC of distance, same"].passed


def test_area_under_the_curve_of_two_gaussians() -> None:
    """In closed form: Phi(d / sqrt 2) for means d deviations apart; ties count half."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=20_000), rng.normal(1.2, 1, 20_000)])
    positive = np.arange(40_000) >= 20_000
    expected = norm.cdf(1.2 / 2**0.5)
    assert trust.area_under_curve(values, positive) == pytest.approx(expected, abs=0.01)
    assert trust.area_under_curve(np.ones(10), np.arange(10) < 3) == 0.5


def test_standard_error_counts_groups_and_not_atoms() -> None:
    """Against the scatter of repeated draws in which all atoms of a group are alike."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(100), 10)
    shares = []
    stated = []
    for _ in range(300):
        covered = np.repeat(rng.random(100) < 0.9, 10)
        shares.append(covered.mean())
        stated.append(trust._standard_error(covered, names))
    assert np.mean(stated) == pytest.approx(np.std(shares), rel=0.15)


@pytest.fixture
def folder(tmp_path: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained model with a record that was calibrated on few structures."""
    monkeypatch.setattr(uncertainty, "FEWEST_STRUCTURES", 3)
    config = PotentialConfig(
        channels=4, l_max=1, cutoff=4.0, readout_size=8, radial_hidden=8, levels_of_theory=["EMT"]
    )
    record = ModelRecord(name="metals", elements={"EMT": list(METALS)})
    place = model_zoo.save_model(tmp_path / "model", Potential(config), record)
    attach_trust(place, data_set, level_of_theory="EMT")
    return place


def check(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", "trust", *map(str, words)])
    assert isinstance(result.exception, (type(None), SystemExit, EvenfieldError)), result.exception
    return result.exit_code, result.stdout + str(result.exception or "")


def test_command_writes_figures_and_pictures(folder: Path, data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    verdict = tmp_path / "trust.json"
    words = ["--outside", data_set, "--pictures", out, "--json", verdict]
    _, text = check(folder, data_set, *words)
    assert "90 % ball, all elements" in text and "metals: AUROC" in text
    assert {path.name for path in out.iterdir()} == {"trust-reliability.png", "trust-spread.png"}
    for path in out.iterdir():
        assert Image.open(io.BytesIO(path.read_bytes())).size[0] > 400
    names = {figure["name"] for figure in json.loads(verdict.read_text())["figures"]}
    assert {"rank correlation of spread, inside", "median radius of 90 %"} <= names


def test_rows_count_errors_within_their_radii() -> None:
    """Against a count by hand; a radius that is infinite covers nothing."""
    own = calibrated(made_up(), drawn(0, num_structures=1500))
    seen = drawn(1)
    rows = {(row.what, row.name): row for row in trust.coverage_rows(own, seen)}
    spread = own.spread(seen.ingredients, seen.numbers)
    of_gold = seen.numbers == 79
    ball = rows["forces", "Au"].balls[0]
    radius = own.force_quantiles(0.9)[1] * spread[of_gold]
    assert ball.number == of_gold.sum() and ball.covered == (seen.error[of_gold] <= radius).sum()
    assert ball.median_radius == pytest.approx(np.median(radius))
    sizes = [row for (what, _), row in rows.items() if what == "forces" and row.by == "size"]
    assert sum(row.number for row in sizes) == len(seen.numbers)
    assert (
        sum(row.balls[1].covered for row in sizes) == rows["forces", "all atoms"].balls[1].covered
    )
    assert rows["stress", "all structures"].number == 400

    few = replace(
        own, force_scores=[own.force_scores[0], Scores.of(np.arange(9.0), 9), *own.force_scores[2:]]
    )
    rows = {(row.what, row.name): row for row in trust.coverage_rows(few, seen)}
    without = rows["forces", "Au"].balls[1]
    assert (without.number, without.share, without.median_radius) == (0, None, None)
    assert rows["forces", "all atoms"].balls[1].number == (~of_gold).sum()
    assert any("Au: too few scores for a radius" in line for line in trust.judged(few, seen)[1])


def test_attached_counts_are_on_the_card_while_the_radii_are_the_same(
    folder: Path, data_set: Path
) -> None:
    _, text = check(folder, data_set, "--attach")
    assert f"attached to {folder}" in text
    card = (folder / "README.md").read_text()
    assert "## Coverage of the radii" in card
    model = model_zoo.load(folder)
    (counted,) = coverages_of(model.potential, model.attachments).values()
    assert (counted.split, counted.calibrated_on) == ("test", "valid")
    row = next(row for row in counted.rows if row.what == "forces" and row.by == "all")
    test_atoms = sum(
        len(one) for one in iter_structures(data_set, "test") if one.level_of_theory == "EMT"
    )
    assert row.number == test_atoms
    ball = row.balls[0]
    assert ball.share is not None and ball.deviation is not None
    cells = f"| forces, all atoms | {row.number:,} | {row.groups} | {100 * ball.share:.1f} +- "
    assert cells in card
    assert "| stress, all structures | " in card

    # nothing else about the model changes, and a second time is the same
    before = dict(model.attachments)
    check(folder, data_set, "--attach")
    after = model_zoo.load(folder).attachments
    assert {name for name in before if before[name] != after[name]} <= {TRUST}

    # other radii for the same weights: what was counted of the old ones is gone from the card
    attach_trust(folder, data_set, level_of_theory="EMT", calibrate_on="test", overwrite=True)
    model = model_zoo.load(folder)
    assert TRUST in model.attachments
    assert coverages_of(model.potential, model.attachments) == {}
    assert "Coverage of the radii" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("content", [b"no json", b"[]", b'{"format": 1}'])
def test_a_file_of_that_name_with_other_content_is_none(folder: Path, content: bytes) -> None:
    attach(folder, {TRUST: content})
    model = model_zoo.load(folder)
    assert coverages_of(model.potential, model.attachments) == {}
    assert "Coverage of the radii" not in (folder / "README.md").read_text()


def test_counts_that_would_not_be_about_held_out_structures_are_not_attached(
    folder: Path, data_set: Path
) -> None:
    code, text = check(folder, data_set, "--split", "train", "--attach")
    assert code == 1 and "the train split is not apart from the training" in text
    code, text = check("evenfield-1", data_set, "--attach", "--level-of-theory", "mp_pbe")
    assert code == 1 and "is not a model folder" in text
    assert TRUST not in model_zoo.load(folder).attachments


def test_what_cannot_be_judged_is_refused(folder: Path, data_set: Path) -> None:
    code, text = check(folder, data_set, "--split", "valid")
    assert code == 1 and "calibrated on the valid split" in text
    code, text = check("evenfield-s", data_set, "--level-of-theory", "EMT")
    assert code == 1 and "no record of the uncertainty of EMT" in text


def test_elements_that_were_not_learned_are_left_out_and_named(data_set: Path) -> None:
    """Their radii are infinite, and made the coverage look better."""

    def model_of(*symbols: str) -> CheckedModel:
        config = PotentialConfig(channels=4, l_max=1, cutoff=4.0, levels_of_theory=["EMT"])
        record = ModelRecord(name="metals", elements={"EMT": list(symbols)})
        return CheckedModel(model_zoo.LoadedModel(Potential(config), record, "metals@1"))

    found, lines = trust.answerable(data_set, "test", model_of("Al", "Ni", "Cu", "Pd", "Pt", "Au"))
    assert found and not any(47 in one.atomic_numbers for one in found)
    (line,) = lines
    assert line.startswith("left out: ") and line.endswith("with Ag, not learned at this level")
    assert trust.answerable(data_set, "test", model_of(*METALS))[1] == []

    with pytest.raises(CheckError, match=r"that the model answers for \(.* with"):
        trust.answerable(data_set, "test", model_of("H"))


def test_another_chemistry_of_unlearned_elements_is_not_judged(
    folder: Path, data_set: Path, tmp_path: Path
) -> None:
    """Infinite radii covered all of it."""
    titanium = Structure.from_atoms(
        bulk("Ti"), "EMT", "titanium", "titanium", energy=0.0, forces=np.zeros((2, 3))
    )
    metals = [*iter_structures(data_set, "test")][:3]
    for name, structures in (("foreign", [titanium]), ("mixed", [titanium, *metals])):
        parts = [replace(one, split="train") for one in structures]
        write_data_set(parts, tmp_path / name, {"file": name, "sha256": name}, ConvertConfig())
    code, text = check(folder, data_set, "--outside", tmp_path / "foreign")
    assert code == 1 and "answers for (1 at 'EMT' with Ti, not learned" in text
    _, text = check(folder, data_set, "--outside", tmp_path / "mixed")
    assert "mixed: left out: 1 at 'EMT' with Ti, not learned" in text
    assert f"of {sum(map(len, metals))} atoms are inside" in text


def test_labels_without_forces_are_named() -> None:
    seen = drawn(0)
    without = replace(seen, force_error=np.full_like(seen.force_error, np.nan))
    with pytest.raises(TooFewStructuresError, match="no structure has forces"):
        with_spread(made_up(), without)
