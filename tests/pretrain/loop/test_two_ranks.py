"""Two ranks do what one does, skip bad steps together and keep step after a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.stream import Stream
from evenfield.pretrain.checkpoints.checkpoints import load_checkpoint
from evenfield.pretrain.run import pretrain


SUPPORT = Path(__file__).parents[2] / "support"
from optimizer_steps import (  # noqa: E402
    LEVELS,
    MODEL,
    batch_of,
    elastic_config,
    largest_difference,
    moment_deviation,
    new_engine,
    noting_structures,
    parts_of_steps,
    plain_steps,
    small_config,
)


pytestmark = pytest.mark.slow  # one start of two processes serves all


@pytest.fixture(scope="module")
def out(data_set, tmp_path_factory) -> Path:
    """What two_ranks.py wrote on two ranks."""
    folder = tmp_path_factory.mktemp("two-ranks")
    shared = {"engine": {"zero_stage": 1}, "schedule": {"warmup_steps": 50}}
    pretrain(small_config(data_set, folder / "elastic", max_steps=3, **shared), quiet=True)
    pretrain(elastic_config(data_set, folder / "lanes", max_steps=3, zero_stage=1), quiet=True)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    no_ranks = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    environment = no_ranks | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, str(SUPPORT / "two_ranks.py"), str(data_set), str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    # the lines of the rank that failed first stand far above the end
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(out) -> list[dict]:
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def reference(train_structures) -> tuple:
    return plain_steps(
        [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures, 1)]
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_uneven_ranks_with_different_heads_equal_plain_torch(
    ranks, reference, zero_stage, accumulation
):
    """ZeRO 1 and 2 mix up gradients when a rank does not touch the other's head."""
    weights, losses, _, moments = reference
    for rank in ranks:
        steps = rank[zero_stage][f"parity-{accumulation}"]
        assert steps["losses"] == pytest.approx(losses, rel=1e-5)
        assert moment_deviation(steps["moments"], moments) < 1e-5
        assert largest_difference(steps["weights"], weights) < 2e-6  # they move by 1e-2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_soap_on_uneven_ranks_equals_soap_on_one(ranks, train_structures, accumulation):
    """Both ranks step all matrices themselves, with the same gradients."""
    whole = [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures, 1)]
    weights, losses, _, _ = plain_steps(whole, "soap")
    for rank in ranks:
        assert rank["soap"][f"parity-{accumulation}"]["losses"] == pytest.approx(losses, rel=1e-5)
        assert largest_difference(rank["soap"][f"parity-{accumulation}"]["weights"], weights) < 1e-5
    one, other = (rank["soap"][f"parity-{accumulation}"]["weights"] for rank in ranks)
    assert largest_difference(one, other) == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_gradient_of_nan_on_one_rank_skips_the_step_on_both(ranks, zero_stage):
    bad = ranks[1][zero_stage]["bad_part"]
    for rank in ranks:
        before, skipped, after = rank[zero_stage]["states"]
        assert largest_difference(before, skipped) == 0
        assert (
            1e-4 < largest_difference(skipped, after) < 1e-2
        )  # and training goes on, with finite weights
        assert [bool(names) for names in rank[zero_stage]["bad_structures"]] == [False, True, False]
        assert set(bad) <= set(
            rank[zero_stage]["bad_structures"][1]
        )  # rank 0, which writes the metrics, names them


def test_resume_where_one_rank_has_no_batch_left_is_exact(ranks):
    for rank in ranks:
        whole, again = rank["resume"]["whole"], rank["resume"]["again"]
        assert rank["resume"]["resumed_from"] < 12
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_one_rank_then_two_then_one_see_every_structure_of_the_epoch_once(
    out, ranks, data_set, train_structures
):
    """In stages 1, 2 and 0, each with the exact weights of the one before."""
    folder = out / "elastic" / "checkpoints"
    saved = load_file(folder / "step-00000003" / "engine.safetensors")
    for rank in ranks:
        taken_up = rank["elastic"]["taken_up"]
        assert all(
            torch.equal(weight, saved[f"weight/potential.{name}"])
            for name, weight in taken_up.items()
        )
    first = list(islice(stream(data_set).batches(), 3))
    engine, rest = new_engine(0), stream(data_set)
    found = load_checkpoint(folder, engine)
    assert found.step == 5
    taken_up, saved = engine.state(), load_file(folder / "step-00000005" / "engine.safetensors")
    assert all(torch.equal(taken_up[name], saved[name]) for name in saved)
    rest.load_state([state["stream"] for state in found.states])
    seen = Counter(
        name for batch in [*first, *to_the_end_of_the_epoch(rest)] for name in batch.structure_ids
    )
    seen += Counter(name for rank in ranks for name in rank["elastic"]["seen"])
    assert seen == Counter(s.structure_id for s in train_structures)
    losses = [
        json.loads(line)["loss"]
        for line in (out / "elastic" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 5 and all(0 < loss < 10 for loss in losses)


def test_losses_of_one_rank_then_two_then_one_are_those_of_the_undisturbed_run(
    out, ranks, data_set, tmp_path
):
    """With virtual ranks, in ZeRO stages 1, 2, 2 and 0: each step has the same structures."""
    whole = elastic_config(data_set, tmp_path / "whole", max_steps=10, zero_stage=0)
    with noting_structures() as expected:
        pretrain(whole, quiet=True)
    with noting_structures() as last:
        pretrain(
            elastic_config(data_set, out / "lanes", max_steps=10, zero_stage=0), "must", quiet=True
        )
    seen = [
        one + other for one, other in zip(*(rank["lanes"] for rank in ranks), strict=True)
    ] + last
    assert seen == expected[3:]
    assert losses_of(out / "lanes") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-5)
    assert len(set(losses_of(out / "lanes"))) == 10


def losses_of(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


def stream(data_set: Path, rank: int = 0, world_size: int = 1) -> Stream:
    config = StreamConfig(edge_budget=1500, window_blocks=2)
    levels = list(LEVELS)
    source = Source(data_set, config, cutoff=MODEL["cutoff"], levels_of_theory=levels)
    return Stream(source, rank=rank, world_size=world_size)


def to_the_end_of_the_epoch(rest: Stream) -> list:
    batches = []
    for batch in rest.batches():
        batches.append(batch)
        if rest.epoch > 0:
            break
    return batches


def test_checkpoint_of_two_ranks_goes_on_on_one_and_sees_the_rest_once(
    out, data_set, train_structures, tmp_path
):
    """Each rank had taken one batch a step in the first epoch."""
    checkpoint = out / "run" / "checkpoints" / "step-00000003"
    (tmp_path / checkpoint.name).symlink_to(checkpoint)
    engine, rest = new_engine(0), stream(data_set)
    found = load_checkpoint(tmp_path, engine)
    step, states = found.step, found.states
    rest.load_state([state["stream"] for state in states])
    before = [
        batch for rank in (0, 1) for batch in islice(stream(data_set, rank, 2).batches(), step)
    ]
    after = to_the_end_of_the_epoch(rest)
    seen = Counter(name for batch in [*before, *after] for name in batch.structure_ids)
    assert seen == Counter(s.structure_id for s in train_structures)
