"""A small publishable model, and changes of its files that keep the manifest consistent."""

from __future__ import annotations

import json
from pathlib import Path

from evenfield import model_zoo
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.package.manifest import write_manifest
from evenfield.model_zoo.package.record import TrainingData
from evenfield.model_zoo.package.sanity_record import CheckVerdict, LevelVerdict, with_verdict


def small_model(folder: Path) -> Path:
    """Write the model into `folder`: Cu at PBE, its default, and Cu and Au at EMT."""
    config = PotentialConfig(
        channels=8, cutoff=4.0, readout_size=16, levels_of_theory=["PBE", "EMT"]
    )
    potential = Potential(config)
    potential.e0[:] = -1234.56789012345
    record = ModelRecord(
        name="copper",
        licence="Apache-2.0",
        elements={"PBE": ["Cu"], "EMT": ["Cu", "Au"]},
        default_level="PBE",
        train_counts={"Cu": 20, "Au": 3},
        training_data=[
            TrainingData(name="metals", sha256="0" * 64, licence="CC0-1.0", num_structures=23)
        ],
    )
    return model_zoo.save_model(folder, potential, record, attachments=sound(potential))


def sound(
    potential: Potential, level: str = "PBE", *, failed: str | None = None
) -> dict[str, bytes]:
    """The attachment that says that the physical checks were passed, or that one failed."""
    checks = {"water": CheckVerdict(passed=None), "repulsion": CheckVerdict(passed=True)}
    if failed is not None:
        checks[failed] = CheckVerdict(passed=False, failed=["figure"])
    verdict = LevelVerdict(suite="quick", made="2026-11-28T00:00:00+00:00", checks=checks)
    return with_verdict(potential, {}, level, verdict)


def sign(folder: Path) -> None:
    """Write the manifest again after a change, as an attacker would."""
    names = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "manifest.json").write_text(
        write_manifest({name: (folder / name).read_bytes() for name in names})
    )


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its hash."""
    (folder / name).write_bytes(data)
    sign(folder)


def sharded(folder: Path, target: Path, max_shard_bytes: int = 20_000) -> Path:
    """Save the same model again, in several files of weights."""
    potential, record = model_zoo.load_model(folder)
    return model_zoo.save_model(
        target,
        potential,
        record,
        attachments=sound(potential),
        max_shard_bytes=max_shard_bytes,
    )
