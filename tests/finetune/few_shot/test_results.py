"""What a few-shot curve says: structures needed, the table, and the figure."""

from __future__ import annotations

import numpy as np
import pytest

from evenfield.core.files import FileError
from evenfield.finetune.few_shot.curve_plot import draw_few_shot_curve
from evenfield.finetune.few_shot.results import FewShotCurve, FewShotFileError


SIZES = (4, 16, 64)


def curve_of(laws: dict[str, list[float]], seeds: int = 1) -> FewShotCurve:
    """Strategy -> force MAE at each of SIZES; every further seed is 10 % worse."""
    rows = []
    for strategy, errors in laws.items():
        for size, error in zip(SIZES, errors, strict=True):
            for seed in range(seeds):
                row = {"num_structures": size, "strategy": strategy, "seed": seed, "seconds": 1.0}
                mae = error * (1 + 0.1 * seed)
                rows.append(row | {"force_mae": mae, "energy_mae_per_atom": None})
    return FewShotCurve.model_validate({"target": "Ti", "force_rms": 2.0, "rows": rows})


def test_error_follows_a_power_law_between_two_sizes():
    curve = curve_of(
        {
            "scratch": [8 / n for n in SIZES],
            "full": [1 / n for n in SIZES],
            "refit": [1.0, 1.0, 1.0],
            "lucky": [0.1, 0.1, 0.1],
        }
    )
    # 1 / n reaches 8 / 64 at n = 8
    assert curve.structures_needed("full", 8 / 64, "force_mae") == pytest.approx(8)
    assert curve.times_fewer("full") == pytest.approx(8)
    assert curve.times_fewer("refit") is None
    # its smallest size is already good enough
    assert curve.times_fewer("lucky") == 16
    assert curve.times_fewer("scratch") == pytest.approx(1)
    # there are no energies in this curve
    assert curve.times_fewer("full", "energy_mae_per_atom") is None


def test_without_training_from_scratch_there_is_nothing_to_compare_with():
    assert curve_of({"full": [0.3, 0.2, 0.1]}).times_fewer("full") is None


def test_table_holds_medians_and_ranges():
    header, rows = curve_of({"refit": [0.3, 0.2, 0.1], "full": [0.4, 0.2, 0.05]}, seeds=3).table(
        "force_mae"
    )
    assert header == ["structures", "closed-form refit", "full"]
    assert rows[0] == ["4", "0.330 (0.300-0.360)", "0.440 (0.400-0.480)"]
    assert curve_of({"full": [0.3, 0.2, 0.1]}).table("energy_mae_per_atom")[1][0] == ["4", "-"]


def test_figure_draws_medians_and_leaves_out_missing_errors():
    curve = curve_of({"scratch": [0.9, 0.5, 0.3], "pretrained": [0.6, 0.6, 0.6]}, seeds=3)
    force, energy = draw_few_shot_curve(curve).axes[:2]
    assert [line.get_label() for line in force.lines] == [
        "trained from scratch",
        "pretrained, unchanged",
    ]
    np.testing.assert_allclose(force.lines[0].get_ydata(), [0.99, 0.55, 0.33])
    assert not energy.lines


def test_file_that_is_no_curve_is_named(tmp_path):
    path = tmp_path / "fewshot.json"
    with pytest.raises(FileError, match=r"fewshot\.json: No such file .*finetune curve"):
        FewShotCurve.read(path)
    path.write_text('{"target": "Ti", "rows": []}')
    with pytest.raises(FewShotFileError, match=r"fewshot\.json: not a few-shot curve \(force_rms"):
        FewShotCurve.read(path)


def test_an_edited_curve_is_damaged(tmp_path):
    path = tmp_path / "fewshot.json"
    curve = curve_of({"scratch": [0.9, 0.5, 0.3]})
    path.write_text(curve.to_json())
    assert FewShotCurve.read(path) == curve
    for old, new in (('"force_mae": 0.9', '"force_mae": 0.8'), ('"checksum"', '"checksun"')):
        text = curve.to_json()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(FewShotFileError, match="does not match its checksum"):
            FewShotCurve.read(path)
