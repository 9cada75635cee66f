"""Errors against plain numpy on predictions made by hand, and against one structure at a time.

Also their files: predictions.npz and evaluation.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.batch import Batch
from evenfield.model_zoo.evaluation import parity
from evenfield.model_zoo.evaluation.evaluation import NothingToEvaluateError, evaluate, predict
from evenfield.model_zoo.evaluation.parity import draw_parity
from evenfield.model_zoo.evaluation.predictions import BadPredictionsError, ParityPairs, Predictions
from evenfield.model_zoo.evaluation.summary import (
    ErrorSummary,
    SummaryError,
    mean_absolute,
    root_mean_square,
    summarise,
)
from evenfield.model_zoo.zoo import named_models as zoo

from optimizer_steps import LEVELS, MODEL, new_potential


@pytest.fixture
def by_hand() -> Predictions:
    """4 structures at 2 of 3 levels: H2O, OH and He of A, Fe2 of C.

    Fe2 has no forces, He has no energy, and all but Fe2 have no stress.
    """
    rng = np.random.default_rng(3)
    numbers = np.array([1, 8, 1, 8, 1, 26, 26, 2])
    structure_index = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    energy, forces, stress = (
        rng.normal(size=(4, 2)),
        rng.normal(size=(8, 3, 2)),
        rng.normal(size=(4, 3, 3, 2)),
    )
    forces[5:7, :, 0] = np.nan
    energy[3, 0] = np.nan
    stress[[0, 1, 3]] = np.nan
    return Predictions(
        atomic_numbers=numbers,
        structure_index=structure_index,
        level_index=np.array([0, 0, 2, 0]),
        level_names=["A", "B", "C"],
        num_atoms=np.array([3, 2, 2, 1]),
        pairs={"energy": energy, "forces": forces, "stress": stress},
    )


def with_forces(predictions: Predictions, forces: np.ndarray) -> Predictions:
    return replace(predictions, pairs={**predictions.pairs, "forces": forces})


def mae(pairs: np.ndarray) -> float:
    return float(np.mean(np.abs(pairs[..., 0] - pairs[..., 1])))


def test_overall_errors(by_hand):
    p, summary = by_hand, summarise(by_hand, "test")
    labelled = p.forces[[0, 1, 2, 3, 4, 7]]
    assert (summary.split, summary.num_structures, summary.num_atoms) == ("test", 4, 8)
    assert summary.energy_mae_per_atom == pytest.approx(mae(p.energy[:3] / p.num_atoms[:3, None]))
    assert summary.force_mae == pytest.approx(mae(labelled))
    assert summary.force_rms == pytest.approx(np.sqrt((labelled[..., 0] ** 2).mean()))
    assert summary.stress_mae == pytest.approx(mae(p.stress[2]))
    json.dumps(summary.to_dict(), allow_nan=False)  # a missing label is null


def test_levels_of_theory_apart_and_absent_ones_left_out(by_hand):
    p, levels = by_hand, summarise(by_hand, "test").levels
    assert set(levels) == {"A", "C"}
    assert levels["A"].num_structures == 3
    assert levels["A"].force_mae == pytest.approx(mae(p.forces[[0, 1, 2, 3, 4, 7]]))
    assert levels["A"].energy_mae_per_atom == pytest.approx(
        mae(p.energy[:2] / p.num_atoms[:2, None])
    )
    assert levels["A"].stress_mae is None
    assert (levels["C"].force_mae, levels["C"].force_rms) == (None, None)
    assert levels["C"].stress_mae == pytest.approx(mae(p.stress[2]))


def test_elements_apart(by_hand):
    p, table = by_hand, summarise(by_hand, "test", {"O": 40, "He": 1}).per_element
    assert set(table) == {"H", "He", "O", "Fe"}
    hydrogen = table["H"]
    assert (
        hydrogen.num_structures,
        hydrogen.num_atoms,
        hydrogen.num_train_structures,
    ) == (2, 3, 0)
    assert hydrogen.force_mae == pytest.approx(mae(p.forces[[0, 2, 4]]))
    assert hydrogen.force_rms == pytest.approx(np.sqrt((p.forces[[0, 2, 4], :, 0] ** 2).mean()))
    assert hydrogen.energy_mae_per_atom == pytest.approx(mae(p.energy[:2] / p.num_atoms[:2, None]))
    assert (table["O"].num_train_structures, table["He"].num_train_structures) == (40, 1)
    assert table["Fe"].force_mae is None and table["He"].energy_mae_per_atom is None
    assert table["Fe"].energy_mae_per_atom == pytest.approx(mae(p.energy[2] / 2))


def test_an_element_is_counted_at_the_levels_at_which_it_is_tested(by_hand):
    """160 training structures at a cheap level do not make an element with 5 common."""
    counts = {"A": {"O": 5, "H": 7}, "B": {"H": 2}, "cheap": {"O": 160}}
    everything = {"O": 165, "H": 9}
    levels = {
        symbol: {
            by_hand.level_names[by_hand.level_index[index]]
            for index in by_hand.structure_index[by_hand.atomic_numbers == number]
        }
        for symbol, number in {"H": 1, "O": 8}.items()
    }
    for level in ("C", *by_hand.level_names):
        counts.setdefault(level, {})
    table = summarise(by_hand, "test", everything, counts).per_element
    for symbol, own_levels in levels.items():
        assert table[symbol].num_train_structures == sum(
            counts[level].get(symbol, 0) for level in own_levels
        )
    # a record that does not count every level has the total only
    del counts["A"]
    table = summarise(by_hand, "test", everything, counts).per_element
    assert table["O"].num_train_structures == 165


def errors_of_elements(errors: list[float]) -> Predictions:
    """One atom of each of the first elements, with a given force error."""
    num = len(errors)
    forces = np.zeros((num, 3, 2))
    forces[..., 1] = np.array(errors)[:, None]
    return Predictions(
        atomic_numbers=np.arange(1, num + 1),
        structure_index=np.arange(num),
        level_index=np.zeros(num, int),
        level_names=["A"],
        num_atoms=np.ones(num, int),
        pairs={
            "energy": np.zeros((num, 2)),
            "forces": forces,
            "stress": np.full((num, 3, 3, 2), np.nan),
        },
    )


@pytest.mark.parametrize(("num", "in_decile"), [(3, 1), (10, 1), (20, 2), (30, 3)])
def test_worst_decile_is_the_mean_of_the_worst_tenth_of_elements(num, in_decile):
    errors = np.random.default_rng(0).permutation(np.arange(1.0, num + 1))
    summary = summarise(errors_of_elements(list(errors)), "test")
    assert summary.worst_decile_force_mae == pytest.approx(np.sort(errors)[-in_decile:].mean())
    assert summary.worst_element_force_mae == num
    assert summary.mean_over_elements_force_mae == pytest.approx(errors.mean())


def test_every_element_weighs_alike_in_the_mean_over_elements(by_hand):
    p = by_hand
    summary = summarise(p, "test")
    elements = [[0, 2, 4], [1, 3], [7]]
    assert summary.mean_over_elements_force_mae == pytest.approx(
        np.mean([mae(p.forces[k]) for k in elements])
    )
    worst = max(zip((mae(p.forces[k]) for k in elements), ("H", "O", "He"), strict=True))
    assert (summary.worst_element_force_mae, summary.worst_element) == (
        pytest.approx(worst[0]),
        worst[1],
    )


def test_no_labels_give_none_and_not_nan(by_hand):
    bare = with_forces(by_hand, np.full_like(by_hand.forces, np.nan))
    summary = summarise(bare, "test")
    for name in (
        "force_mae",
        "force_rms",
        "worst_element",
        "worst_decile_force_mae",
        "mean_over_elements_force_mae",
    ):
        assert getattr(summary, name) is None
    assert (
        root_mean_square(np.array([np.nan])) is None
        and mean_absolute(np.full((2, 2), np.nan)) is None
    )


def test_prediction_of_nan_shows(by_hand):
    """It must not be left out as if the label were missing."""
    forces = by_hand.forces.copy()
    forces[0, 0, 1] = np.nan
    assert np.isnan(summarise(with_forces(by_hand, forces), "test").force_mae)


# --- predictions of a potential


@pytest.fixture
def potential():
    potential = new_potential().eval()
    potential.e0[:, 13:80] = torch.linspace(-5, 5, 67, dtype=torch.float64)
    return potential


def test_batched_predictions_equal_one_structure_at_a_time(potential, train_structures):
    structures = train_structures[::7]
    p = predict(potential, structures, edge_budget=900)
    first = 0
    for s in structures:
        single = Batch.join([Batch.from_structure(s, MODEL["cutoff"], LEVELS)])
        out = potential(single)
        k = first_with(p, s)
        e0 = float(potential.e0[single.head[0], single.atomic_numbers].sum())
        assert p.energy[k] == pytest.approx([s.energy - e0, out.energy.item() - e0], abs=2e-5)
        atoms = p.structure_index == k
        assert np.allclose(p.forces[atoms][..., 0], s.forces, atol=1e-6)
        assert np.allclose(p.forces[atoms][..., 1], out.forces.detach(), atol=1e-5)
        assert p.level_names[p.level_index[k]] == s.level_of_theory
        first += len(s)
    assert len(p.atomic_numbers) == first


def first_with(p: Predictions, structure) -> int:
    """Batches may change the order; the forces tell which structure it is."""
    atom = np.flatnonzero(np.isclose(p.forces[:, :, 0], structure.forces[0], atol=1e-6).all(1))[0]
    return int(p.structure_index[atom])


def test_predicting_leaves_the_mode_as_it_was(potential, train_structures):
    for training in (True, False):
        potential.train(training)
        predict(potential, train_structures[:1])
        assert potential.training is training


def test_stress_label_of_a_slab_is_not_compared(potential, train_structures):
    slab = next(s for s in train_structures if not s.pbc.all())
    crystal = next(s for s in train_structures if s.pbc.all())
    alone = evaluate(potential, [crystal], "test").stress_mae
    both = evaluate(
        potential, [slab.with_labels(stress=np.ones((3, 3))), crystal], "test"
    ).stress_mae
    assert both == pytest.approx(alone, rel=1e-4)


def test_limit_and_emptiness(potential, train_structures):
    assert evaluate(potential, train_structures, "valid", 3).num_structures == 3
    with pytest.raises(NothingToEvaluateError, match="no structures to evaluate"):
        predict(potential, [])


def test_saved_predictions_are_those_that_were_summarised(by_hand, tmp_path):
    by_hand.parity().save(tmp_path / "predictions.npz")
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as saved:
        per_atom = by_hand.energy / by_hand.num_atoms[:, None]
        assert np.array_equal(saved["reference_energy_per_atom"], per_atom[:, 0], equal_nan=True)
        assert np.array_equal(saved["predicted_energy_per_atom"], per_atom[:, 1])
        assert np.allclose(
            saved["reference_forces"], by_hand.forces[..., 0], atol=1e-6, equal_nan=True
        )
        assert np.allclose(saved["predicted_forces"], by_hand.forces[..., 1], atol=1e-6)
        assert [saved["level_names"][k] for k in saved["level_index"]] == ["A", "A", "C", "A"]


def test_saved_predictions_are_read_again(by_hand, tmp_path):
    path = tmp_path / "predictions.npz"
    by_hand.parity().save(path)
    again = ParityPairs.read(path)
    assert set(again.pairs) == {"energy", "forces", "stress"}
    np.testing.assert_allclose(again.pairs["forces"], by_hand.forces, rtol=1e-6)
    np.testing.assert_array_equal(again.pairs["energy"], by_hand.comparable["energy"])
    assert (again.level_names, again.level_index.tolist()) == (["A", "B", "C"], [0, 0, 2, 0])
    # two atoms have no forces
    assert again.flat("forces").shape == (18, 2)


def test_predictions_without_stress_are_read_and_damaged_ones_are_named(by_hand, tmp_path):
    path = tmp_path / "predictions.npz"
    by_hand.parity().save(path)
    arrays = dict(np.load(path))
    older = {name: values for name, values in arrays.items() if "stress" not in name}
    np.savez(path, **older)
    assert set(ParityPairs.read(path).pairs) == {"energy", "forces"}
    np.savez(path, **{**arrays, "predicted_forces": arrays["predicted_forces"][1:]})
    with pytest.raises(BadPredictionsError, match=r"predictions\.npz: .*forces has shape \(8, 3\)"):
        ParityPairs.read(path)
    del older["level_names"]
    np.savez(path, **older)
    with pytest.raises(BadPredictionsError, match="lacks level_names"):
        ParityPairs.read(path)
    path.write_text("no archive")
    with pytest.raises(BadPredictionsError, match="cannot be read"):
        ParityPairs.read(path)


def test_a_flipped_bit_in_predictions_is_found_or_changes_nothing(by_hand, tmp_path):
    path = tmp_path / "predictions.npz"
    by_hand.parity().save(path)
    whole = path.read_bytes()
    expected = ParityPairs.read(path)

    rng = np.random.default_rng(0)
    num_found = 0
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        try:
            found = ParityPairs.read(path)
        except EvenfieldError:
            num_found += 1
            continue
        # some bytes of an archive say nothing, such as the date of a file
        assert found.level_names == expected.level_names
        np.testing.assert_array_equal(found.level_index, expected.level_index)
        for name, pair in expected.pairs.items():
            np.testing.assert_array_equal(found.pairs[name], pair)
    assert num_found > 150


def test_parity_figure_has_a_panel_for_every_label_with_references(by_hand):
    summary = summarise(by_hand, "test")
    figure = draw_parity(by_hand.parity(), summary, "small, test split")
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(":")[0] for title in titles] == ["Energy", "Force", "Stress"]
    legend = [text.get_text().split("\n")[0] for text in figure.axes[0].get_legend().texts]
    assert legend == ["A", "C"]
    bare = with_forces(by_hand, np.full_like(by_hand.forces, np.nan))
    assert len(draw_parity(bare.parity(), summarise(bare, "test"), "t").axes) == 2


def test_parity_legend_of_many_levels_covers_no_panel(by_hand, monkeypatch):
    monkeypatch.setattr(parity, "MANY_LEVELS", 1)
    figure = draw_parity(by_hand.parity(), summarise(by_hand, "test"), "many levels")
    assert figure.axes[0].get_legend() is None
    (legend,) = figure.legends
    assert [text.get_text().split("\n")[0] for text in legend.texts] == ["A", "C"]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axes.bbox.y0 for axes in figure.axes)


def test_ticks_of_the_density_are_plain_numbers(by_hand, monkeypatch):
    """Figures show no formulas, and powers of ten came out as $\\mathdefault{10^{5}}$."""
    monkeypatch.setattr(parity, "MANY_POINTS", 1)
    figure = draw_parity(by_hand.parity(), summarise(by_hand, "test"), "density")
    figure.draw_without_rendering()
    bar = next(axes for axes in figure.axes if axes.get_ylabel() == "components in a cell")
    ticks = [label.get_text() for label in bar.get_yticklabels()]
    assert ticks
    assert not [tick for tick in ticks if "$" in tick]


# --- summaries as files


def test_summary_is_the_same_after_a_round_trip(by_hand, tmp_path):
    summary = summarise(by_hand, "test", {"O": 40})
    path = tmp_path / "evaluation.json"
    path.write_text(summary.to_json())
    assert ErrorSummary.read(path) == summary
    assert ErrorSummary.read(path).to_json() == summary.to_json()
    keys = [
        *("split", "num_structures", "num_atoms", "energy_mae_per_atom", "force_mae", "force_rms"),
        *("stress_mae", "mean_over_elements_force_mae", "worst_element"),
        *("worst_element_force_mae", "worst_decile_force_mae", "levels", "per_element"),
    ]
    assert list(summary.to_dict()) == keys
    assert list(summary.to_dict()["per_element"]["H"]) == [
        *("num_structures", "num_train_structures", "num_atoms"),
        *("force_mae", "force_rms", "energy_mae_per_atom"),
    ]


def test_stored_summary_of_the_shipped_model_keeps_its_bytes():
    path = Path(zoo.__file__).parent / "shipped" / "evenfield-s" / "evaluation.json"
    assert ErrorSummary.read(path).to_json() == path.read_text()


def test_a_changed_digit_is_noticed(by_hand, tmp_path):
    path = tmp_path / "evaluation.json"
    text = summarise(by_hand, "test").to_json()
    path.write_text(text.replace('"num_structures": ', '"num_structures": 1', 1))
    with pytest.raises(SummaryError, match="does not match its checksum"):
        ErrorSummary.read(path)
    # the highest bit of a byte: no text any more
    path.write_bytes(text.encode()[:90] + b"\xe5" + text.encode()[91:])
    with pytest.raises(SummaryError, match="not JSON"):
        ErrorSummary.read(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"split": None}, "split: not a text"),
        ({"num_atoms": "9"}, "num_atoms: '9' is not a count"),
        ({"force_mae": "small"}, "force_mae: 'small' is not a number"),
        ({"per_element": {"Xx": {}}}, "per_element.Xx: no element"),
        ({"levels": {"A": {}}}, "num_structures: None is not a count"),
        ({"levels": []}, "levels: not an object"),
    ],
)
def test_damaged_summary_is_named(by_hand, tmp_path, change, fault):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(summarise(by_hand, "test").to_dict() | change))
    with pytest.raises(
        SummaryError, match=rf"evaluation\.json: not a summary .*{re.escape(fault)}"
    ):
        ErrorSummary.read(path)
