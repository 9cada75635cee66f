"""The report and its pictures, on made-up run folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from evenfield.data_pipelines.periodic_table import SYMBOLS


LEVELS = ("GFN1-xTB", "EMT")


def fake_metrics(path: Path, *, speed: float, steps: int = 200) -> None:
    """Decaying loss with noise, an evaluation every 20 steps."""
    rng = np.random.default_rng(1)
    lines = []
    for step in range(1, steps + 1):
        loss = 2.0 * np.exp(-speed * step / steps) * rng.lognormal(0, 0.25) + 0.05
        seconds = 0.5 * step
        rates = {"structures_per_s": 55.0, "edges_per_s": 41000.0, "data_wait_share": 0.02}
        lines.append({"event": "step", "step": step, "epoch": 0, "loss": loss, "learning_rate": 1e-3} | rates)
        lines[-1]["seconds"] = seconds
        if step % 20 == 0:
            mae = 0.6 * np.exp(-speed * step / steps) + 0.04
            errors = {"energy_mae_per_atom": 0.2 * mae, "force_mae": mae}
            lines.append({"event": "evaluation", "step": step, "split": "valid"} | errors)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fake_evaluation(path: Path, *, tail: float) -> dict:
    """Errors that grow with rarity by the exponent `tail`; elements after Rn and every ninth are not tested."""
    rng = np.random.default_rng(2)
    elements = {}
    for z, symbol in enumerate(SYMBOLS[:86], start=1):
        train = int(20000 / z**1.9) + 2
        rms = float(rng.uniform(0.5, 2.0))
        mae = 0.04 * (20000 / train) ** tail * float(rng.lognormal(0, 0.3))
        tested = z % 9 != 5
        elements[symbol] = {
            "num_structures": train // 10 + 1 if tested else 0,
            "num_train_structures": train,
            "num_atoms": 40 if tested else 0,
            "force_mae": mae if tested else None,
            "force_rms": rms if tested else None,
            "energy_mae_per_atom": 0.02,
        }
    errors = {symbol: e["force_mae"] for symbol, e in elements.items() if e["force_mae"]}
    ordered = sorted(errors, key=errors.get)
    decile = ordered[-max(1, len(ordered) // 10) :]
    level = {"force_mae": 0.07, "force_rms": 1.3, "energy_mae_per_atom": 0.009, "num_structures": 300}
    evaluation = {
        "split": "test",
        "num_structures": 600,
        "num_atoms": 9000,
        "energy_mae_per_atom": 0.0123,
        "force_mae": 0.0712,
        "force_rms": 1.21,
        "stress_mae": None,
        "per_element": elements,
        "mean_over_elements_force_mae": float(np.mean(list(errors.values()))),
        "worst_element": ordered[-1],
        "worst_element_force_mae": errors[ordered[-1]],
        "worst_decile_force_mae": float(np.mean([errors[s] for s in decile])),
        "levels": {LEVELS[0]: level, LEVELS[1]: level | {"force_mae": 0.031}},
    }
    path.write_text(json.dumps(evaluation))
    return evaluation


def fake_predictions(path: Path, *, num_structures: int = 600, num_atoms: int = 9000) -> None:
    """Noise of the size that fake_evaluation claims: a MAE is 0.798 of a standard deviation."""
    rng = np.random.default_rng(3)
    level = np.arange(num_structures) % 3 // 2
    energy = rng.normal(-3, 0.8, num_structures) + 2 * level
    forces = rng.laplace(0, 0.85, (num_atoms, 3))
    np.savez(
        path,
        reference_energy_per_atom=energy,
        predicted_energy_per_atom=energy + rng.normal(0, 0.0123 / 0.798, num_structures),
        reference_forces=forces,
        predicted_forces=forces + rng.normal(0, 0.0712 / 0.798, forces.shape),
        level_index=level,
        level_names=np.array(LEVELS),
    )


def fake_run(folder: Path, *, speed: float = 3.0, tail: float = 0.3) -> Path:
    """A run folder with the three files that a report needs."""
    folder.mkdir(parents=True)
    fake_metrics(folder / "metrics.jsonl", speed=speed)
    fake_evaluation(folder / "evaluation.json", tail=tail)
    fake_predictions(folder / "predictions.npz")
    return folder


def fake_few_shot(path: Path) -> Path:
    """Power laws with seeds; the refit starts lower than training from scratch."""
    rng = np.random.default_rng(4)
    laws = {"pretrained": (0.45, 0), "step0": (0.45, 0), "refit": (0.3, 0.3), "scratch": (1.6, 0.55)}
    rows = []
    for strategy, (start, slope) in laws.items():
        for count in (0,) if strategy == "pretrained" else (4, 8, 16, 32, 64, 128, 256):
            for seed in range(3):
                mae = start * max(count, 4) ** -slope * 4**slope * float(rng.lognormal(0, 0.08))
                rows.append({"num_structures": count, "strategy": strategy, "seed": seed, "force_mae": mae})
                rows[-1] |= {"energy_mae_per_atom": 0.2 * mae, "seconds": 1.5 + 0.1 * count}
    path.write_text(json.dumps({"target": "BO2 polymorphs", "force_rms": 1.9, "rows": rows}))
    return path
