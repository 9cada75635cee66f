"""Every recipe that comes with the package runs, in another size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evenfield.core.settings import load_settings, recipes_of
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


SMALL = [
    "max_steps=2",
    "model.channels=4",
    "model.l_max=1",
    "model.num_layers=1",
    "logging.tensorboard=false",
]
NAMES = sorted(path.stem for path in recipes_of(PretrainConfig).glob("*.yaml"))


def test_there_is_one_for_every_size():
    assert NAMES == ["gpu_node", "laptop", "many_nodes"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_runs(name, data_set, tmp_path):
    config = load_settings(
        PretrainConfig, Path(name), [f"data={data_set}", f"out={tmp_path / name}", *SMALL]
    )
    assert pretrain(config, quiet=True) == tmp_path / name / "model"
    rows = [
        json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2]
