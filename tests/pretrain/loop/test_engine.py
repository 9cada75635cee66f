"""The engine on one process takes the steps of plain PyTorch; test_two_ranks.py has two."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.core.ranks import adopt_slurm_environment, check_version, start_distributed
from evenfield.core.settings import SettingsError, load_settings
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.loop.loss import label_counts
from evenfield.pretrain.loop.optimizer import OptimizerConfig, parameter_groups

from optimizer_steps import (
    CLIP_NORM,
    LEARNING_RATES,
    batch_of,
    engine_steps,
    largest_difference,
    moment_deviation,
    new_engine,
    new_potential,
    parts_of_steps,
    plain_steps,
    weights,
    with_coinciding_atoms,
)


PATHS = ("data=d", "out=o")
STAGES = pytest.mark.parametrize("zero_stage", [0, 1, 2])


@pytest.fixture(scope="module")
def steps(train_structures) -> list:
    """Two batches a step."""
    return [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures)]


@pytest.fixture(scope="module")
def reference(train_structures) -> tuple:
    """All structures of a step in one batch."""
    return plain_steps(
        [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures, 1)]
    )


# --- parity


def test_reference_moves_and_is_clipped_in_some_steps_only(reference):
    """Else the comparisons below would prove little."""
    weights_after, losses, norms, _ = reference
    assert largest_difference(weights_after, weights(new_potential())) > 1e-2
    assert min(norms) < 0.9 * CLIP_NORM and max(norms) > 1.5 * CLIP_NORM
    assert len(set(losses)) == len(losses)


@STAGES
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_steps_equal_plain_torch(train_structures, reference, zero_stage, accumulation):
    """20 steps: one big batch against its uneven parts, which use different heads."""
    steps = [
        [batch_of(part) for part in parts]
        for parts in parts_of_steps(train_structures, accumulation)
    ]
    engine, moments = new_engine(zero_stage), []
    assert engine_steps(engine, steps, moments) == pytest.approx(reference[1], rel=1e-5)
    assert moment_deviation(moments, reference[3]) < 1e-5
    assert largest_difference(weights(engine.train_module.potential), reference[0]) < 1e-6


def test_steps_of_soap_equal_plain_torch(train_structures, steps):
    """Uneven parts against one big batch, over two looks at the eigenvectors."""
    whole = [[batch_of(part) for part in parts] for parts in parts_of_steps(train_structures, 1)]
    weights_after, losses, _, _ = plain_steps(whole, "soap")
    engine = new_engine(0, optimizer="soap")
    assert engine_steps(engine, steps) == pytest.approx(losses, rel=1e-5)
    assert (
        largest_difference(weights(engine.train_module.potential), weights_after) < 1e-5
    )  # they move by 1e-2


@pytest.mark.parametrize("stage", [1, 2])
def test_soap_is_refused_where_its_matrices_would_be_cut(stage):
    with pytest.raises(
        SettingsError, match=rf"zero_stage={stage} cuts matrices .*: set optimizer\.name=adamw, or"
    ):
        load_settings(PretrainConfig, overrides=[*PATHS, f"engine.zero_stage={stage}"])


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("engine.zero_stage", 3, "3 is refused: its hooks drop the weights"),
        (
            "compute.precision",
            "float64",
            "float64 is refused: DeepSpeed would silently keep float32 master weights",
        ),
    ],
)
def test_what_would_go_wrong_silently_is_refused_with_the_reason(key, value, reason):
    with pytest.raises(SettingsError, match=rf"{key}: {reason}"):
        load_settings(PretrainConfig, overrides=[*PATHS, f"{key}={value}"])


def test_potential_in_double_precision_is_refused():
    with pytest.raises(
        EvenfieldError,
        match=r"torch\.float64, not torch\.float32: DeepSpeed would silently train float32 copies",
    ):
        new_engine(1, new_potential().double())


@STAGES
def test_step_returns_the_norm_before_the_clip(steps, zero_stage):
    engine = new_engine(zero_stage)
    norms = []
    for batches, learning_rate in zip(steps[:3], LEARNING_RATES, strict=False):
        counts = sum(label_counts(batch) for batch in batches)
        for batch in batches:
            engine.backward(engine.forward(batch, lambda counts=counts: counts))
        norms.append(engine.step(learning_rate))
    assert norms == pytest.approx(plain_steps(steps)[2][:3], rel=1e-4)


# --- gradients that are not finite


def loss_of(engine, batch) -> torch.Tensor:
    batch = batch.to(engine.device)
    return engine.forward(batch, lambda: label_counts(batch))


@STAGES
def test_gradient_of_nan_is_found_behind_a_finite_loss(steps, zero_stage):
    engine = new_engine(zero_stage)
    loss = loss_of(engine, steps[0][0])
    engine.backward(loss)
    assert engine.gradients_finite()
    cusp = torch.sqrt(
        0 * engine.train_module.potential.readout.hidden.weight.sum()
    )  # 0, its slope 0 / 0
    loss = loss_of(engine, steps[0][1]) + cusp
    engine.backward(loss)  # accumulated on top
    assert torch.isfinite(loss.detach())
    assert not engine.gradients_finite()


@STAGES
def test_discarded_gradients_leave_no_trace(steps, zero_stage):
    """Neither the bad batch nor the good one before it, in the same step or in the next ones."""
    engine, undisturbed = new_engine(zero_stage), new_engine(zero_stage)
    engine_steps(engine, steps[:2])
    engine_steps(undisturbed, steps[:2])
    engine.backward(loss_of(engine, steps[2][0]))
    engine.backward(loss_of(engine, with_coinciding_atoms(steps[2][1])))
    assert not engine.gradients_finite()
    engine.discard()
    engine_steps(engine, steps[3:])
    engine_steps(undisturbed, steps[3:])
    assert (
        largest_difference(
            weights(engine.train_module.potential), weights(undisturbed.train_module.potential)
        )
        == 0
    )


# --- optimizer


def test_weight_decay_spares_embedding_biases_and_readout():
    potential = new_potential()
    *decayed, bare = parameter_groups(potential, OptimizerConfig(weight_decay=0.3))
    assert [group["weight_decay"] for group in (*decayed, bare)] == [0.3, 0.3, 0.0]
    spared = {id(p) for p in bare["params"]}
    names = {name: id(p) in spared for name, p in potential.named_parameters()}
    assert len(names) == sum(len(group["params"]) for group in (*decayed, bare))
    assert (
        names["readout.weight"]
        and names["readout.hidden.bias"]
        and not names["readout.hidden.weight"]
    )
    assert all(
        spared for name, spared in names.items() if "embedding" in name or name.endswith("bias")
    )
    assert sum(not spared for spared in names.values()) > 10


def test_matrices_are_told_from_tables_of_elements():
    potential = new_potential()
    matrices, *others = parameter_groups(potential, OptimizerConfig())
    assert matrices["matrices"] and not any(group.get("matrices") for group in others)
    assert all(p.ndim in (2, 3) for p in matrices["params"])
    tables = {id(p) for group in others for p in group["params"]}
    assert {id(potential.backbone.embedding.weight), id(potential.readout.element_weight)} <= tables


def test_frozen_parameters_are_left_to_nobody():
    potential = new_potential()
    potential.readout.hidden.weight.requires_grad_(False)
    grouped = [
        id(p) for group in parameter_groups(potential, OptimizerConfig()) for p in group["params"]
    ]
    assert id(potential.readout.hidden.weight) not in grouped
    assert len(grouped) == len(list(potential.parameters())) - 1


# --- start


@pytest.mark.parametrize("version", ["0.20.0", "0.19.7", "1.0", "0.9.19"])
def test_unknown_deepspeed_is_refused(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"deepspeed": version}[name])
    with pytest.raises(
        EvenfieldError,
        match=f"deepspeed {version} has not passed the parity tests: install 'deepspeed>=",
    ):
        start_distributed()


@pytest.mark.parametrize("version", ["0.19.8", "0.19.11+cu130"])
def test_known_deepspeed_is_taken(version):
    check_version(version)


def test_names_of_srun_are_adopted():
    environment = {
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "MASTER_ADDR": "node1",
    }
    adopt_slurm_environment(environment)
    assert {
        name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    } == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
    }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "1",
            "RANK": "0",
            "WORLD_SIZE": "1",
        },
    ],
    ids=["no Slurm", "one task", "torchrun inside Slurm"],
)
def test_other_environments_are_left_alone(environment):
    before = dict(environment)
    adopt_slurm_environment(environment)
    assert environment == before


def test_ranks_of_this_process_do_not_confuse_one_that_it_starts():
    """A notebook that has trained, then runs a command: the command is a world of its own."""
    start_distributed()
    code = (
        "from evenfield.core.ranks import start_distributed; start_distributed(); print('joined')"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip().endswith("joined"), done.stderr[-2000:]
