"""The recipe that makes a named model, at a toy size: data, training, card, and a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenfield import model_zoo
from evenfield.finetune.zoo_build import build as zoo
from evenfield.finetune.zoo_build.build import ZooRecipe, build_zoo_model
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.errors import NoCheckpointError

from small_models import small_model


TOY = ZooRecipe(
    num_structures=60,
    description="A toy.",
    pretrain={
        "max_steps": 3,
        "evaluate_every": 2,
        "model": {"channels": 4, "l_max": 1, "readout_size": 8},
    },
)


def test_files_of_a_user_stay_next_to_a_model_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "attach_trust", lambda *_: None)
    new = small_model(tmp_path / "work" / "model")
    old = small_model(tmp_path / "zoo" / "toy")
    (old / "notes.txt").write_text("mine")
    described = zoo._described(TOY, "toy", new, tmp_path / "data")
    made = zoo._moved(described, old)
    assert (made / "notes.txt").read_text() == "mine"
    assert model_zoo.load(made).record.description == "A toy."


def test_a_damaged_checkpoint_is_answered_with_options_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`zoo build` has no --resume."""
    monkeypatch.setattr(zoo, "generate", lambda *_: None)
    monkeypatch.setattr(zoo, "convert", lambda *_: None)

    def refuse(config: PretrainConfig, resume: str) -> None:
        raise NoCheckpointError(Path(config.out), ["step-00000005 (damaged)"])

    monkeypatch.setattr(zoo, "pretrain", refuse)
    with pytest.raises(NoCheckpointError) as told:
        build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "zoo", workers=1)
    run = tmp_path / "work" / "toy"
    assert told.value.remedy == f"remove {run}, or build in another folder with --work"


@pytest.mark.slow
def test_a_model_is_made_described_and_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tblite", reason="comes with the demo extra")
    folder = build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "zoo", workers=1)
    assert folder == tmp_path / "zoo" / "toy"
    model = model_zoo.load(folder)
    assert model.record.name == "toy" and model.record.description == "A toy."
    assert set(model.record.level_details) == {"GFN1-xTB", "EMT"} == set(model.record.elements)
    assert model.evaluation.num_structures > 0 and "parity.png" in model.attachments
    assert {"probe.extxyz", "posterior.safetensors"} <= model.attachments.keys()
    assert model_zoo.publish(folder, "me/toy", tmp_path / "hub", allow_failed=True)
    # what is done is kept: the folder comes back byte for byte without data or training
    monkeypatch.setattr(zoo, "pretrain", None)
    monkeypatch.setattr(zoo, "generate", None)
    again = build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "other", workers=1)
    assert (
        again is not None
        and (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    )
