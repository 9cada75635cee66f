"""The verdict of the physical checks: what publishing, the card and loading make of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from evenfield import model_zoo
from evenfield.model_zoo.hub.publish import plan_publication
from evenfield.model_zoo.package import sanity_record as records
from evenfield.model_zoo.package.folder import attach, read_model_folder
from evenfield.model_zoo.package.manifest import BadModelError
from evenfield.model_zoo.package.sanity_record import (
    SANITY,
    SanityWarning,
    potential_digest,
    sanity_record,
    with_verdict,
)

from small_models import sharded, sound


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_warned", set())


def fail(folder: Path, level: str = "PBE") -> None:
    """Attach the verdict that elastic constants failed."""
    potential, _ = model_zoo.load_model(folder)
    attach(folder, sound(potential, level, failed="elastic"))


def test_a_failed_model_is_published_only_when_that_is_allowed(
    folder: Path, tmp_path: Path
) -> None:
    fail(folder)
    with pytest.raises(BadModelError, match="physical checks failed at PBE: elastic") as caught:
        model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    assert "--allow-failed" in (caught.value.remedy or "")
    assert not (tmp_path / "hub").exists()

    plan = plan_publication(folder, "me/copper", allow_failed=True)
    assert plan.unsound == ["physical checks failed at PBE: elastic"] and not plan.refused
    pinned = model_zoo.publish(folder, "me/copper", tmp_path / "hub", allow_failed=True)
    with pytest.warns(
        SanityWarning, match=r"failed physical checks \(PBE: elastic\); see its card"
    ):
        model_zoo.load(pinned, tmp_path / "hub")
    assert (
        "| PBE | quick | elastic | **failed** | figure | 0 |" in (folder / "README.md").read_text()
    )


def test_the_warning_comes_once(folder: Path) -> None:
    fail(folder)
    with pytest.warns(SanityWarning):
        model_zoo.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_zoo.load(folder)


def test_a_model_without_the_checks_is_refused(folder: Path, tmp_path: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    bare = model_zoo.save_model(tmp_path / "bare", potential, record)
    with pytest.raises(BadModelError, match="were not made of these weights at PBE"):
        model_zoo.publish(bare, "me/copper", tmp_path / "hub")
    assert model_zoo.publish(bare, "me/copper", tmp_path / "hub", allow_failed=True)


def test_the_verdict_of_other_weights_counts_as_none(folder: Path, tmp_path: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    old = sound(potential)
    potential.e0[0, 29] += 1e-3
    changed = model_zoo.save_model(tmp_path / "changed", potential, record, attachments=old)
    assert sanity_record(potential, old) is None
    assert plan_publication(changed, "me/copper").unsound
    assert "Physical checks" not in (changed / "README.md").read_text()


def test_the_default_level_must_have_been_checked(folder: Path) -> None:
    potential, _ = model_zoo.load_model(folder)
    attach(folder, sound(potential, "EMT"))
    assert plan_publication(folder, "me/copper").unsound == [
        "the physical checks were not made of these weights at PBE"
    ]


def test_verdicts_of_several_levels_are_kept(folder: Path) -> None:
    model = read_model_folder(folder)
    before = sanity_record(model.potential, model.attachments)
    assert before is not None
    added = with_verdict(model.potential, model.attachments, "EMT", before.levels["PBE"])
    after = sanity_record(model.potential, added)
    assert after is not None and list(after.levels) == ["PBE", "EMT"]


def test_the_digest_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    """However they are cut into files."""
    first, _ = model_zoo.load_model(folder)
    second, _ = model_zoo.load_model(sharded(folder, tmp_path / "sharded"))
    assert potential_digest(first) == potential_digest(second)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"potential": 3}', b"\xff"])
def test_anything_else_of_that_name_is_no_verdict(folder: Path, content: bytes) -> None:
    potential, record = model_zoo.load_model(folder)
    model_zoo.save_model(folder, potential, record, attachments={SANITY: content})
    assert plan_publication(folder, "me/copper").unsound
