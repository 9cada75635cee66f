"""The loop: what it does and leaves, and that it goes on after any end with the same result."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from pydantic import ValidationError

from evenfield import model_zoo
from evenfield.core.destination import DestinationError
from evenfield.core.settings import SettingsError
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.simulation.guard import GuardConfig
from evenfield.simulation.learn import fit, labelling, loop, stall, store
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.explore import Frame, first_walks, walk_on
from evenfield.simulation.learn.labelling import Label, LabellingError
from evenfield.simulation.learn.loop import Learned, learn, round_folders

from labelled_molecules import planted_head


def settings(log: Path, **changes: Any) -> LearnConfig:
    return LearnConfig.model_validate(
        {
            "oracle": "odd_oracle:OddOracle",
            "oracle_settings": {"log": str(log)},
            "level_of_theory": "EMT",
            "labels": 9,
            "initial": 4,
            "batch": 3,
            "steps": 12,
            "every": 3,
            "temperatures": [600.0],
            "guard": {"force_radius": 0.02},
            **changes,
        }
    )


def content_of(done: Learned) -> dict[str, Any]:
    """Weights and record of uncertainty of the model, and the labels."""
    model = model_zoo.load(done.model)
    content: dict[str, Any] = {
        name: tensor.numpy().tobytes() for name, tensor in model.potential.state_dict().items()
    }
    content |= dict(model.attachments)
    for structure in iter_structures(done.data, "train"):
        content[structure.structure_id] = (structure.positions.tobytes(), structure.energy)
    return content


@pytest.fixture
def with_pictures(model: LoadedModel, starts: list[Atoms]) -> Callable[..., Learned]:
    """Runs or continues a loop in a folder."""

    def run(out: Path, config: LearnConfig) -> Learned:
        return learn(model, starts, out, config, say=lambda _: None)

    return run


@pytest.fixture
def quietly(with_pictures: Callable[..., Learned], no_pictures: None) -> Callable[..., Learned]:
    """The same in less time."""
    return with_pictures


def test_what_a_loop_does_and_leaves(
    with_pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly = with_pictures
    log = tmp_path / "log"
    config = settings(log)
    done = quietly(tmp_path / "out", config)
    assert done.ended == loop.SPENT
    asked = [one["asked"] for one in done.rounds]
    assert asked[0] == 4 and sum(asked) == 9 and max(asked[1:]) <= 3
    assert len(log.read_text().splitlines()) == 9
    # a walk that stands still meets the same state again, which is not asked for again
    labelled = [one.positions.tobytes() for one in iter_structures(done.data, "train")]
    assert len(set(labelled)) == 9
    first, second = done.rounds[:2]
    assert not first["explored"] and first["before"] is None
    assert second["before"]["force_rmse"] > 0 and second["stopped"][0]["rule"] == "force_radius"

    # the labels are a data set, and the model knows its errors at their level
    structures = list(iter_structures(done.data, "train"))
    assert len(structures) == 9 and {one.level_of_theory for one in structures} == {"EMT"}
    model = model_zoo.load(done.model)
    assert model.record.name == "out" and model.record.elements["EMT"] == ["Au", "Cu"]
    own = model.uncertainties["EMT"]
    assert own.calibrated_on == "structures left out of the refit"
    assert own.force_scores[-1].structures == 9
    page = done.page.read_text()
    assert "9 of 9" in page and page.count("data:image/png") == 3

    # each new label has its own error, and a simulation stands still from its trigger to the model
    worst = second["before"]["worst"]
    assert list(worst) == [f"001-{number:03d}" for number in range(second["asked"])]
    assert max(one["error"] for one in worst.values()) == second["before"]["largest_error"]
    steps = ("choosing", "labelling", "learning")
    waited = sum(second[f"seconds_{step}"] for step in steps)
    assert second["seconds_to_next_model"] == pytest.approx(waited, abs=0.03)
    assert not second["interrupted"]

    # more labels: it goes on, and asks only for those
    more = quietly(tmp_path / "out", settings(log, labels=sum(asked) + 2))
    assert [one["asked"] for one in more.rounds] == [*asked, 2]
    assert len(log.read_text().splitlines()) == 11
    with pytest.raises(DestinationError, match="another model, other structures or other"):
        quietly(tmp_path / "out", settings(log, seed=1))

    # labels of two oracles would be one level of theory
    monkeypatch.setattr(loop, "code_identity", lambda *_: "0" * 64)
    with pytest.raises(DestinationError, match="another version of the oracle"):
        quietly(tmp_path / "out", settings(log, labels=sum(asked) + 4))
    assert len(log.read_text().splitlines()) == 11


def test_heads_of_other_properties_stay_where_only_the_readout_was_refitted(
    model_folder: Path, starts: list[Atoms], no_pictures: None, tmp_path: Path
) -> None:
    base = with_heads(model_folder, tmp_path / "with")
    said: list[str] = []
    config = settings(tmp_path / "log", labels=4, strategy="wide")
    done = learn(base, starts, tmp_path / "refitted", config, say=said.append)
    kept = model_zoo.load(done.model)
    for name in base.heads:
        assert kept.predict(starts[1], name) == pytest.approx(base.predict(starts[1], name))
    assert not any("heads" in line for line in said)
    assert "heads" not in done.page.read_text()


def with_heads(folder: Path, out: Path) -> LoadedModel:
    """The model with two heads with random weights, of the network's and the readout's features."""
    model = model_zoo.load(folder)
    heads = {}
    for name, features, size in (
        ("volume", "network", model.potential.backbone.num_features),
        ("moment", "readout", model.potential.config.readout_size),
    ):
        head = planted_head("scalar", size, name=name, unit="A^3", features=features)
        about = head.description.model_copy(update={"elements": ["Au", "Cu"]})
        heads[name] = dataclasses.replace(head, description=about, bias=head.bias[:, :2])
    file = {HEADS: heads_file(model.potential, heads)}
    return model_zoo.load(
        model_zoo.save_model(out, model.potential, model.record, attachments=file)
    )


def test_a_folder_of_another_result_is_refused_with_a_remedy_that_exists(quietly, tmp_path) -> None:
    """The remedy was --overwrite, which the command does not have."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_info.json").write_text('{"schema_version": 1, "source": {}}')
    with pytest.raises(DestinationError, match="already exists and holds a data set") as caught:
        quietly(out, settings(tmp_path / "log"))
    assert caught.value.remedy == "choose another OUT"


def test_nothing_is_asked_where_nothing_is_flagged(quietly, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = quietly(tmp_path / "out", settings(log, guard={"force_radius": 1e6}))
    assert done.ended == loop.QUIET
    assert [one["asked"] for one in done.rounds] == [4, 0]
    assert done.rounds[1]["over"] == 2 and done.rounds[1]["picoseconds"] == pytest.approx(0.048)

    # what the model knows at this level is enough to begin with
    learned = model_zoo.load(done.model)
    starts = [one.to_atoms() for one in iter_structures(done.data, "train")][:1]
    config = settings(log, initial=0, guard={"force_radius": 1e6})
    again = learn(learned, starts, tmp_path / "again", config, say=lambda _: None)
    assert again.model is None and again.ended == loop.QUIET
    assert len(log.read_text().splitlines()) == 4


def test_no_structure_is_asked_for_twice(
    model: LoadedModel, starts: list[Atoms], tmp_path: Path
) -> None:
    """Whatever its velocities: a walk goes on at a state that may have a label, or a failure."""
    own = loop._Loop(model, starts, tmp_path, settings(tmp_path, choose="random"), print)
    own.labels = [Label(starts[0], "000-000", {}, "not_finite", "", 0.0)]
    moving = starts[0].copy()
    moving.set_momenta(np.ones((4, 3)))
    new = starts[1].copy()
    new.rattle(0.01, seed=0)
    frames = [Frame(one, 0, 1.0, 1.0) for one in (moving, starts[1], new, new.copy(), starts[1])]
    stopped = {"text": "too far"}
    first, second = own.walks
    own.walks = [
        dataclasses.replace(first, frames=frames[:3], stopped=stopped),
        dataclasses.replace(second, frames=frames[3:], stopped=stopped),
    ]
    asked = own._choice(1)["atoms"]
    expected = [starts[1].positions.tolist(), new.positions.tolist()]
    assert sorted(one["positions"] for one in asked) == sorted(expected)


@pytest.mark.parametrize("how", ["farthest", "committee", "random"])
def test_other_ways_to_choose(how: str, quietly, tmp_path: Path) -> None:
    done = quietly(tmp_path / "out", settings(tmp_path / "log", labels=6, choose=how))
    assert [one["asked"] for one in done.rounds] == [4, 2]


def test_labels_that_fail_are_set_aside_with_their_reason(quietly, tmp_path: Path) -> None:
    log = tmp_path / "log"
    oracle = {"log": str(log), "faults": {"1": "nan", "5": "raise"}}
    done = quietly(tmp_path / "out", settings(log, oracle_settings=oracle, labels=7))
    failures = {name: why for one in done.rounds for name, why in one["failures"].items()}
    assert failures == {"000-001": "not_finite", "001-001": "calculation_failed"}
    names = [one.structure_id for one in iter_structures(done.data, "train")]
    assert len(names) == 5 and not set(names) & set(failures)
    assert "did not converge in 60 cycles" in done.page.read_text()


def test_an_oracle_that_labels_nothing_ends_the_loop(quietly, tmp_path: Path) -> None:
    faults = {str(number): "nan" for number in range(4)}
    oracle = {"log": str(tmp_path / "log"), "faults": faults}
    config = settings(tmp_path / "log", oracle_settings=oracle)
    with pytest.raises(LabellingError, match=r"none of the 4 first structures .*4 not_finite"):
        quietly(tmp_path / "out", config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": 1}, "no first label has Au"),
        ({"initial": 0}, "does not know how large its errors at EMT are"),
        ({"guard": {}}, "never stops a simulation"),
        ({"initial_rattle": (0.2, 0.1)}, "a lower and an upper bound"),
        ({"pressures": [-200.0]}, "greater than or equal to -100"),
        ({"pressures": [2e3]}, "less than or equal to 1000"),
        ({"slurm": ["cpu"]}, "is no option of sbatch"),
    ],
)
def test_what_cannot_work_is_refused(
    changes: dict[str, Any], message: str, quietly, tmp_path: Path
) -> None:
    with pytest.raises((SettingsError, ValidationError), match=message):
        quietly(tmp_path / "out", settings(tmp_path / "log", **changes))
    assert not (tmp_path / "out").exists()


def test_a_pressure_needs_a_volume(model: LoadedModel, starts: list[Atoms], tmp_path: Path) -> None:
    slab = starts[1].copy()
    slab.pbc = (True, True, False)
    config = settings(tmp_path / "log", pressures=[1.0])
    with pytest.raises(SettingsError, match="no structure is periodic in all three directions"):
        learn(model, [slab], tmp_path / "out", config, say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_walk_goes_on_where_it_was_stopped(quietly, starts: list[Atoms], tmp_path: Path) -> None:
    done = quietly(tmp_path / "out", settings(tmp_path / "log", labels=4))
    calculator = model_zoo.load(done.model).calculator(uncertainty=True)
    free = settings(tmp_path / "log", guard={"force_radius": 1e6})
    walk = first_walks(starts, free)[1]
    whole = walk_on(walk, 1, 1, starts[1], calculator, free, lambda _: None)
    assert whole.is_over(free) and whole.stopped is None
    assert [frame.step for frame in whole.frames] == [0, 3, 6, 9, 12]

    limit = float(np.sort([frame.radius for frame in whole.frames])[-2])
    held = settings(tmp_path / "log", guard=GuardConfig(force_radius=limit).model_dump())
    part = walk_on(walk, 1, 1, starts[1], calculator, held, lambda _: None)
    assert part.stopped is not None and 0 < part.steps < 12
    # the frame that broke the rule is met too, and the state before it obeys
    assert part.frames[-1].radius > limit
    assert part.frames[-1].step == part.steps + 1 == part.stopped["step"]
    goes_on = walk_on(part, 1, 2, starts[1], calculator, free, lambda _: None)
    assert goes_on.frames[0].step == part.steps
    assert np.array_equal(goes_on.frames[0].atoms.positions, part.state.positions)
    assert goes_on.is_over(free)


class Killed(BaseException):
    """Ends the loop like a signal that nobody handles."""


def test_after_any_end_it_goes_on_with_the_same_model(
    model_folder: Path,
    starts: list[Atoms],
    no_pictures: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended before and after each of its writes, while it fits, and while it is told of labels.

    The walks are under pressure where ASE can, and the last model is one of a gradient strategy,
    which the heads of other properties do not survive.
    """
    model = with_heads(model_folder, tmp_path / "with")
    has_barostat = importlib.util.find_spec("ase.md.langevinbaoab") is not None
    log = tmp_path / "log"
    config = settings(
        log,
        labels=8,
        batch=2,
        pressures=[5.0] if has_barostat else [],
        when_stalled="full",
        stall_rounds=1,
        gradient={"max_steps": 2},
        # with which the second error is not below the first
        seed=1,
    )
    # whatever two steps have led to is taken
    monkeypatch.setattr(stall, "LEAST_GAIN", -np.inf)
    monkeypatch.setattr(stall, "NUM_PARTS", 2)
    said: list[str] = []

    def quietly(out: Path, config: LearnConfig) -> Learned:
        return learn(model, starts, out, config, say=said.append)

    whole = quietly(tmp_path / "whole", config)
    assert [one["learned"]["strategy"] for one in whole.rounds] == ["refit", "refit", "full"]
    assert "tries full, because for 1 round the error on new labels was not below" in said[-3]
    words = "without the heads volume, moment: the network was trained"
    assert words in said[-1] and words in whole.page.read_text()
    assert not model_zoo.load(whole.model).heads
    if has_barostat:
        assert whole.rounds[-1]["simulations"][0]["conditions"] == "600 K, 5 GPa"
        assert "at 600 K, 5 GPa)" in said[-2]
    expected = content_of(whole)
    asked = log.read_text()
    log.unlink()

    out = tmp_path / "out"
    started = []
    start = labelling._start

    def ending(
        work: Callable[..., Any], place_of_path: int, landmark: Path, *, before: bool
    ) -> Callable[..., Any]:
        def ends_here(*what: Any, **how: Any) -> Any:
            is_last = what[place_of_path] == landmark
            if is_last and before:
                raise Killed
            result = work(*what, **how)
            if is_last:
                raise Killed
            return result

        return ends_here

    def remember(*what: Any) -> Any:
        started.append(start(*what))
        return started[-1]

    monkeypatch.setattr(labelling, "_start", remember)
    # each attempt ends at a later place, all with one folder
    ends = [
        ("rounds/000/labels/001/request.json", "after"),
        ("rounds/000/model/out", "after"),
        ("rounds/001/walk-001.json", "before"),
        ("rounds/001/round.json", "before"),
        ("rounds/002/walk-000.json", "after"),
        # the training is done once more, to the same weights
        ("rounds/002/learned.json", "after"),
        ("rounds/002/model/out", "after"),
        ("data", "after"),
    ]
    for landmark, moment in ends:
        with monkeypatch.context() as patch:
            before = moment == "before"
            for owner, name, place_of_path in (
                (store, "write", 0),
                (fit, "save_finetuned", 2),
                (loop, "write_data_set", 1),
            ):
                work = getattr(owner, name)
                ends_here = ending(work, place_of_path, out / landmark, before=before)
                patch.setattr(owner, name, ends_here)
            with pytest.raises(Killed):
                quietly(out, config)
    done = quietly(out, config)
    assert content_of(done) == expected
    assert log.read_text() == asked
    # times are those of the last start
    assert [one["interrupted"] for one in done.rounds] == [True, True, True]
    assert "after an interruption" in done.page.read_text()
    for process in started:
        process.wait()


@pytest.mark.slow
def test_killed_by_a_signal_at_several_moments(
    quietly, model_folder: Path, starts: list[Atoms], tmp_path: Path
) -> None:
    """SIGKILL of a process, several times in one loop; nothing is asked for twice."""
    log = tmp_path / "log"
    config = settings(log, labels=7)
    expected = content_of(quietly(tmp_path / "whole", config))
    asked = log.read_text()
    log.unlink()

    out = tmp_path / "out"
    landmarks = ["learn.json", "rounds/000/labels/001/asked", "rounds/000/model"]
    landmarks += ["rounds/001/walk-000.json", "rounds/001/labels/000/request.json"]
    kills = 0
    for landmark in landmarks:
        child = os.fork()
        if child == 0:
            try:
                quietly(out, config)
            finally:
                os._exit(0)
        while not (out / landmark).exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), f"ended before {landmark}"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    assert kills == len(landmarks)
    done = quietly(out, config)
    assert content_of(done) == expected
    assert log.read_text() == asked
    assert json.loads((out / "learn.json").read_text())["settings"]["seed"] == 0


def test_rounds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("1000", "999", "000", ".view"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in round_folders(tmp_path)] == ["000", "999", "1000"]
