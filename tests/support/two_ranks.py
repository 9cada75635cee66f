"""Run by torchrun for test_two_ranks.py: everything that needs two ranks, in one start."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from evenfield.core.ranks import start_distributed
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain.checkpoints import run_folder
from evenfield.pretrain.checkpoints.checkpoints import load_checkpoint
from evenfield.pretrain.loop.schedule import Schedule
from evenfield.pretrain.loop.trainer import Trainer
from evenfield.pretrain.run import pretrain

from optimizer_steps import (
    FixedStream,
    batch_of,
    elastic_config,
    engine_steps,
    new_engine,
    noting_structures,
    parts_of_steps,
    small_config,
    weights,
    with_coinciding_atoms,
)


def parity(data: Path, zero_stage: int, optimizer: str = "adamw") -> dict:
    """20 steps with uneven ranks that use different heads, of one and of two batches a rank."""
    outcome = {}
    for accumulation in (1, 2):
        parts = parts_of_steps(list(iter_structures(data, "train")), 2 * accumulation)
        engine, moments = new_engine(zero_stage, optimizer=optimizer), []
        losses = engine_steps(
            engine, [[batch_of(part) for part in step] for step in parts], moments
        )
        outcome[f"parity-{accumulation}"] = {
            "weights": weights(engine.train_module.potential),
            "losses": losses,
            "moments": moments,
        }
    return outcome


def elastic(out: Path, data: Path) -> dict:
    """A run of one rank goes on on two, in another stage; what they see, and what they take up."""
    engine = new_engine(2)
    load_checkpoint(out / "checkpoints", engine)
    taken_up = weights(engine.train_module.potential)
    with noting_structures() as steps:
        config = small_config(data, out, max_steps=5, engine={"zero_stage": 2})
        pretrain(config, "must", quiet=True)
    return {"taken_up": taken_up, "seen": [name for step in steps for name in step]}


def virtual_ranks(out: Path, data: Path) -> list[list[str]]:
    """The structures of a run of two virtual ranks: begun on one rank, resumed twice on two."""
    with noting_structures() as steps:
        for max_steps in (5, 6):
            pretrain(elastic_config(data, out, max_steps, zero_stage=2), "must", quiet=True)
    return steps


def bad_step(data: Path, zero_stage: int) -> dict:
    """Three steps, of which the second has a gradient of NaN on rank 1 only."""
    parts = parts_of_steps(list(iter_structures(data, "train")))[:3]
    engine = new_engine(zero_stage)
    batches = [batch_of(part[engine.rank]) for part in parts]
    if engine.rank == 1:
        batches[1] = with_coinciding_atoms(batches[1])
    trainer = Trainer(engine, FixedStream(batches), Schedule(4e-3), 3, [])
    reports, states = [], []
    for work in trainer._work():
        reports.append(trainer.train_step(work).bad_structures)
        states.append(weights(engine.train_module.potential))
        if trainer.step == 3:
            return {
                "bad_structures": reports,
                "states": states,
                "bad_part": [s.structure_id for s in parts[1][1]],
            }
    raise AssertionError


@contextmanager
def slow_look_at_run_folder(rank: int) -> Iterator[None]:
    """Rank 1 looks at the run folder first, and has not ended when rank 0 could write there."""
    look = run_folder._holds_nothing

    def slow_look(out: Path) -> bool:
        if rank == 0:
            time.sleep(0.3)
        found = look(out)
        if rank == 1:
            time.sleep(0.6)
        return found

    with patch.object(run_folder, "_holds_nothing", slow_look):
        yield


def resume(data: Path, out: Path, rank: int) -> dict:
    """A whole run, and again from a checkpoint at which rank 1 alone had begun the next epoch."""
    config = small_config(data, out)
    with slow_look_at_run_folder(rank):
        model = pretrain(config, quiet=True)
    whole = load(model).potential.state_dict()
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    manifests = [json.loads((path / "manifest.json").read_text()) for path in checkpoints]
    ahead = next(
        k
        for k, manifest in enumerate(manifests)
        if _one_is_ahead([state["stream"] for state in manifest["states"]])
    )
    dist.barrier()
    if rank == 0:
        for path in checkpoints[ahead + 1 :]:
            shutil.rmtree(path)
    dist.barrier()
    again = load(pretrain(config, resume="must", quiet=True)).potential.state_dict()
    return {"whole": whole, "again": again, "resumed_from": manifests[ahead]["step"]}


def _one_is_ahead(streams: list[dict]) -> bool:
    """17 blocks make 9 windows, 5 of rank 0 and 4 of rank 1."""
    finished = [
        sum(len(range(a, b + 1, step)) for a, b, step in stream["finished"]) for stream in streams
    ]
    return finished[0] < 5 and finished[1] >= 4


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    rank = dist.get_rank()
    result: dict = {stage: parity(data, stage) | bad_step(data, stage) for stage in (0, 1, 2)}
    result["soap"] = parity(data, 0, "soap")
    result["resume"] = resume(data, out / "run", rank)
    result["elastic"] = elastic(out / "elastic", data)
    result["lanes"] = virtual_ranks(out / "lanes", data)
    torch.save(result, out / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
