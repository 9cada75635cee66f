"""Where commands write: what is refused, what is replaced, and what survives a failure."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from evenfield.core import destination
from evenfield.core.destination import (
    DestinationError,
    check_destination,
    json_kind,
    kind_of,
    replace_folder,
)
from evenfield.core.locks import LockedError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"format_version": 3, "files": {"a": {"sha256": ""}}}')
    (folder / "README.md").write_text("old")
    return folder


@pytest.mark.parametrize("place", ["absent", "absent/deeper", "empty"])
def test_free_places_are_accepted(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / place)


def test_an_occupied_folder_is_refused_with_what_it_holds(model: Path) -> None:
    with pytest.raises(DestinationError, match=r"a model \(README\.md, manifest\.json\)"):
        check_destination(model)
    check_destination(model, overwrite=True)


def test_a_command_without_overwrite_does_not_advise_it(model: Path) -> None:
    """`evenfield learn` did."""
    with pytest.raises(DestinationError, match="holds a model") as caught:
        check_destination(model)
    assert caught.value.remedy == "choose another OUT"
    with pytest.raises(DestinationError, match="or replace it with --overwrite"):
        check_destination(model, overwrite=False)


def test_overwrite_spares_what_evenfield_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DestinationError, match=r"thesis\.tex"):
        check_destination(tmp_path, overwrite=True)


def test_a_command_replaces_only_what_it_makes_itself(model: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match=r"a model .* does not replace"):
            check_destination(model, overwrite=overwrite, kinds=["a training run"])
    check_destination(model, overwrite=True, kinds=["a model"])


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("12345")
    with pytest.raises(DestinationError, match="a file of 5 bytes"):
        check_destination(tmp_path / "file")
    with pytest.raises(DestinationError, match="is a file"):
        check_destination(tmp_path / "file" / "out")


VERDICT = json_kind("figures of a check", check="phases")
NO_VERDICTS = {
    "thesis.txt": "years of work",
    "census.json": '{"per_element": {}}',
    "other.json": '{"check": "elastic"}',
    "list.json": "[1]",
    "deep.json": "[" * 100_000,
    "bytes.json": "\udc00",
}


@pytest.mark.parametrize("name", NO_VERDICTS)
def test_overwrite_replaces_no_file_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(NO_VERDICTS[name].encode("utf-8", "surrogatepass"))
    before = path.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(DestinationError) as refused:
            check_destination(path, overwrite=overwrite, file_kind=VERDICT)
        assert f"a file of {len(before)} bytes" in refused.value.message
        # what would not help is not offered
        assert refused.value.remedy == "choose another OUT"


def test_a_file_of_the_same_kind_is_replaced_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text('{"figures": [], "check": "phases"}')
    with pytest.raises(DestinationError, match=r"holds figures of a check: .* --overwrite"):
        check_destination(path, overwrite=False, file_kind=VERDICT)
    check_destination(path, overwrite=True, file_kind=VERDICT)


def test_a_command_of_folders_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for kinds in ([], ["a model"]):
        with pytest.raises(DestinationError, match=r"a file of 4 bytes, not a folder"):
            check_destination(tmp_path / "thesis.txt", overwrite=True, kinds=kinds)


def test_a_command_of_files_replaces_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="is a folder, and holds nothing"):
        check_destination(tmp_path, overwrite=True, file_kind=VERDICT)


def test_a_file_in_a_data_set_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"schema_version": 1, "source": {}}')
    (tmp_path / "census.json").write_text("{}")
    with pytest.raises(DestinationError, match="a file of 2 bytes in the folder of a data set"):
        check_destination(tmp_path / "census.json", overwrite=True, file_kind=VERDICT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # a web page's manifest, a data set of another library, settings of another program
        ("manifest.json", '{"name": "page", "icons": []}'),
        ("dataset_info.json", '{"description": "", "features": {}}'),
        ("config.yaml", "model: resnet\nlr: 0.1\n"),
        ("report.html", "<html>my thesis</html>"),
        ("evaluation.json", '{"accuracy": 0.9}'),
        ("simulation.json", "[]"),
        ("checkpoints/epoch-1.ckpt", "weights"),
        (".parts", "a file"),
    ],
)
def test_a_common_file_name_makes_no_folder_ours(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert kind_of(tmp_path) is None
    with pytest.raises(DestinationError, match="which evenfield did not write"):
        check_destination(tmp_path, overwrite=True)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "loop"
    link.symlink_to(link)
    with pytest.raises(DestinationError, match="leads back to itself"):
        check_destination(link)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DestinationError, match="may not write"):
            check_destination(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("out", ["model", ".", "link"])
def test_an_input_is_never_overwritten(model: Path, out: str) -> None:
    (model.parent / "link").symlink_to(model)
    with pytest.raises(DestinationError, match="is read by this command"):
        check_destination(model.parent / out, overwrite=True, inputs=["owner/name", model])


def _replace(folder: Path) -> None:
    with replace_folder(folder) as new:
        (new / "manifest.json").write_text("new")


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_is_replaced_as_a_whole(
    model: Path, can_swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_swap:
        monkeypatch.setattr(destination, "_exchange", lambda first, second: False)

    _replace(model)

    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert [path.name for path in model.iterdir()] == ["manifest.json"]
    assert (model / "manifest.json").read_text() == "new"


def test_a_failure_leaves_the_old_folder(model: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replace_folder(model) as new:
        (new / "manifest.json").write_text("new")
        raise KeyboardInterrupt
    assert sorted(path.name for path in model.iterdir()) == ["README.md", "manifest.json"]
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_new_folders_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    _replace(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_old_folder_comes_back_after_a_kill_between_two_renames(model: Path) -> None:
    model.rename(model.with_name(".model.0123.old"))
    with pytest.raises(KeyboardInterrupt), replace_folder(model):
        raise KeyboardInterrupt
    assert (model / "README.md").read_text() == "old"


def test_two_processes_do_not_replace_the_same_folder(model: Path) -> None:
    with replace_folder(model), pytest.raises(LockedError), replace_folder(model):
        pass


def _replace_forever(folder: Path) -> None:
    for number in range(1_000_000):
        with replace_folder(folder) as new:
            (new / "first").write_text(str(number))
            (new / "second").write_text(str(number))


def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for trial in range(10):
        process = multiprocessing.get_context("fork").Process(
            target=_replace_forever, args=(folder,)
        )
        process.start()
        while not folder.exists():
            time.sleep(0.001)
        time.sleep(0.002 * trial)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()

        first = (folder / "first").read_text()
        assert first == (folder / "second").read_text()
    _replace(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_a_user_stay_in_a_folder_that_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("page.html", "pictures/old.png", "pictures/mine.png", "notes/deep/text.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    (out / "empty").mkdir()
    (out / "private").mkdir(mode=0o700)
    (out / "private" / "key").write_text("mine")
    (out / "link").symlink_to("nowhere")

    with replace_folder(out, {"page.html", "pictures/old.png"}.__contains__) as new:
        (new / "page.html").write_text("new")
        (new / "pictures").mkdir()
        (new / "pictures" / "new.png").write_text("new")

    found = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    pictures = {"pictures/new.png", "pictures/mine.png"}
    assert found == {"page.html", *pictures, "notes/deep/text.txt", "private/key", "link"}
    assert (out / "page.html").read_text() == "new" and (out / "empty").is_dir()
    assert (out / "private").stat().st_mode & 0o777 == 0o700
    assert str((out / "link").readlink()) == "nowhere"


def test_a_file_of_a_user_with_the_name_of_a_new_one_gets_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("mine", "mine too"):
        folder.mkdir(exist_ok=True)
        (folder / "probe.extxyz").write_text(content)
        with replace_folder(folder, lambda name: False) as new:
            (new / "probe.extxyz").write_text("ours")
    assert (folder / "probe.extxyz").read_text() == "ours"
    assert (folder / "probe.extxyz.kept").read_text() == "mine"
    assert (folder / "probe.extxyz.kept2").read_text() == "mine too"


def test_a_folder_of_files_of_ours_alone_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "old.png").write_text("old")
    with replace_folder(out, {"pictures/old.png"}.__contains__) as new:
        (new / "page.html").write_text("new")
    assert [path.name for path in out.iterdir()] == ["page.html"]
