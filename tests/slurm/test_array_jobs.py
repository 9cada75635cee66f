"""The recipes of job arrays on a real Slurm: conversion in parts, a few-shot curve, evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.store.shards import read_info
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.package.folder import save_model

from cluster import Cluster


pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "slurm"
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")


def await_end(cluster: Cluster, *jobs: str) -> None:
    """Wait until every task of every job has completed; fails when one ends in another way."""
    for job in jobs:

        def ended(job: str = job) -> bool:
            return set(cluster.fields(job, "JobState")) <= set(ENDED)

        cluster.wait(ended, 180, f"end of {job}")
        states = cluster.fields(job, "JobState")
        assert set(states) == {"COMPLETED"}, cluster.logs()


@pytest.fixture(scope="module")
def model(data_set, tmp_path_factory) -> Path:
    """An untrained model of one level of theory."""
    torch.manual_seed(0)
    config = PotentialConfig(
        channels=4,
        l_max=1,
        num_layers=1,
        readout_size=8,
        radial_hidden=8,
        cutoff=4.0,
        levels_of_theory=["EMT"],
    )
    folder = tmp_path_factory.mktemp("model") / "base"
    elements = {"EMT": ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]}
    record = ModelRecord(name="base", licence="CC0-1.0", elements=elements)
    save_model(folder, Potential(config), record)
    return folder


def test_conversion_shared_by_an_array_then_finished(cluster, emt_file, tmp_path):
    words = [
        str(RECIPES / "convert.sbatch"),
        str(emt_file),
        str(tmp_path / "out"),
        "columns.level_of_theory=level",
    ]
    array = cluster.submit("--array=1-2", *words, cwd=tmp_path)
    last = cluster.submit(f"--dependency=afterok:{array}", *words, cwd=tmp_path)
    await_end(cluster, array, last)

    # the same conversion in one process; the records of the shards hold their hashes
    config = ConvertConfig(columns={"level_of_theory": "level"})
    convert(emt_file, tmp_path / "here", config, workers=1)
    shared = read_info(tmp_path / "out")["shards"]
    alone = read_info(tmp_path / "here")["shards"]
    assert shared == alone


@pytest.fixture
def one_level(train_structures, tmp_path) -> Path:
    """A data set of one level of theory, a fifth of it for testing."""
    own = [structure for structure in train_structures if structure.level_of_theory == "EMT"]
    parts = []
    for index, structure in enumerate(own[:30]):
        split = "test" if index % 5 == 0 else "train"
        parts.append(replace(structure, split=split))
    source = {"file": "part", "sha256": ""}
    write_data_set(parts, tmp_path / "emt", source, ConvertConfig())
    return tmp_path / "emt"


def test_curve_shared_by_an_array_and_evaluations(cluster, model, one_level, tmp_path):
    curve = tmp_path / "curve.json"
    words = [str(RECIPES / "finetune_curve.sbatch"), str(model), str(one_level), str(curve)]
    # two seeds for two tasks: each does a part of the curve, and the last job puts them together
    words += ["sizes=[4]", "seeds=[3,4]", "scratch_steps=2", "strategies=[refit]"]
    # the model is hardly trained: its forces are 200 times too small, like those of another unit
    words += ["finetune.trust_units=true"]
    evaluate = [
        str(RECIPES / "evaluate.sbatch"),
        str(model),
        str(tmp_path / "errors"),
        str(one_level),
    ]
    array = cluster.submit("--array=1-2", *words, cwd=tmp_path)
    last = cluster.submit(f"--dependency=afterok:{array}", *words, cwd=tmp_path)
    evaluation = cluster.submit("--array=0", *evaluate, cwd=tmp_path)
    await_end(cluster, array, last, evaluation)

    rows = json.loads(curve.read_text())["rows"]
    assert {row["seed"] for row in rows} == {3, 4}
    summary = tmp_path / "errors" / one_level.name / "evaluation.json"
    errors = json.loads(summary.read_text())
    assert errors["split"] == "test"
    assert errors["force_mae"] > 0
