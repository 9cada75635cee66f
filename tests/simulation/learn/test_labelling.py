"""Labels: each fault of an oracle is named, and none is asked for twice."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.simulation.learn import labelling, store
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.labelling import LabellingError, labels_of


@pytest.fixture
def frames() -> list[Atoms]:
    made = []
    for seed in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        made.append(atoms)
    return made


def asking(log: Path, timeout: float = 60.0, **faults: str) -> LearnConfig:
    """Settings with the oracle whose faults are given as t0="nan" for the first time."""
    return LearnConfig(
        oracle="odd_oracle:OddOracle",
        oracle_settings={
            "log": str(log),
            "faults": {name.removeprefix("t"): fault for name, fault in faults.items()},
        },
        timeout=timeout,
        largest_force=40.0,
    )


def test_every_fault_is_named_and_the_others_are_labelled(
    frames: list[Atoms], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    frames[5].positions[0] = frames[5].positions[1] + [0.0, 0.0, 0.9]
    config = asking(log, 2.0, t0="nan", t1="shape", t2="raise", t3="die", t4="hang")
    labels = labels_of(tmp_path / "000" / "labels", [*frames, frames[0]], config)
    found = [(label.failure, label.detail) for label in labels]
    assert found[0] == ("not_finite", "")
    assert found[1] == ("wrong_shape", "forces of shape (3, 3)")
    assert found[2] == ("calculation_failed", "did not converge in 60 cycles")
    assert found[3][0] == "oracle_ended" and "exit code 3" in found[3][1]
    assert found[4] == ("time-out", "no label after 2 s")
    assert found[5][0] == "force_too_large"
    assert found[6] == (None, "")
    assert all(not label.results for label in labels[:6])
    # bit for bit what the calculator says of what was asked
    atoms = frames[0].copy()
    atoms.calc = EMT()
    results = labels[6].results
    assert results["energy"] == atoms.get_potential_energy()
    assert np.array_equal(results["forces"], atoms.get_forces())
    assert np.array_equal(results["stress"], atoms.get_stress(voigt=False))
    assert labels[6].name == "000-006"
    assert len(log.read_text().splitlines()) == 7

    # once more: all answers are there
    again = labels_of(tmp_path / "000" / "labels", [*frames, frames[0]], config)
    assert [label.failure for label in again] == [label.failure for label in labels]
    assert len(log.read_text().splitlines()) == 7


def test_a_labeller_outlives_the_loop_and_is_waited_for(
    frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kills the loop does not kill the calculation, whose answer is not asked for again."""

    class Killed(BaseException):
        pass

    log = tmp_path / "log"
    config = asking(log, t0="slow", t2="slow")
    with monkeypatch.context() as patch:
        # a process of a loop that is gone has nobody who waits for it
        started = []
        start = labelling._start
        patch.setattr(labelling, "_start", lambda *how: started.append(start(*how)) or started[-1])

        def killed(*_: object) -> None:
            if log.exists():
                raise Killed

        patch.setattr(labelling, "_watch", killed)
        with pytest.raises(Killed):
            labels_of(tmp_path / "000" / "labels", frames, config)
    labels = labels_of(tmp_path / "000" / "labels", frames, config)
    assert [label.failure for label in labels] == [None] * 6
    assert len(log.read_text().splitlines()) == 6
    assert started[0].wait(10) == 0


def test_a_labeller_that_was_killed_begins_again(frames: list[Atoms], tmp_path: Path) -> None:
    """By a machine that went down: only the label that was being computed is asked for again."""
    folder = tmp_path / "000" / "labels"
    log = tmp_path / "log"
    config = asking(log, t2="hang")

    killed = []

    def kill(_: int) -> None:
        # the third line says that the third label has begun
        if not killed and log.exists() and len(log.read_text().splitlines()) == 3:
            killed.append(int((folder / labelling.PROCESS).read_text()))
            os.kill(killed[0], signal.SIGKILL)

    labels = labels_of(folder, frames, config, kill)
    assert [label.failure for label in labels] == [None] * 6
    asked = log.read_text().splitlines()
    assert len(asked) == 7 and asked[2] == asked[3]


def test_interrupted_by_hand_nothing_goes_on(
    frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    def interrupted(*_: object) -> None:
        if log.exists() and log.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(labelling, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labels_of(tmp_path / "000" / "labels", frames, asking(log, t0="hang"))
    assert not labelling._is_at_work(tmp_path / "000" / "labels")
    time.sleep(0.2)
    assert len(log.read_text().splitlines()) == 1


def test_a_full_disk_is_no_fault_of_a_structure(
    frames: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "000" / "labels"
    words = (
        "import sys, errno; from pathlib import Path;"
        "from evenfield.simulation.learn import labeller, store\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "store.write = full\n"
        "sys.exit(labeller.main(Path(sys.argv[1])))"
    )
    whole = labelling.subprocess.Popen

    def with_full_disk(command: list[str], **how: object) -> object:
        return whole([sys.executable, "-c", words, command[-1]], **how)

    with monkeypatch.context() as patch:
        patch.setattr(labelling.subprocess, "Popen", with_full_disk)
        with pytest.raises(LabellingError, match="No space left on device") as told:
            labels_of(folder, frames, asking(tmp_path / "log"))
    assert "start the command again" in told.value.remedy
    labels = labels_of(folder, frames, asking(tmp_path / "log"))
    assert [label.failure for label in labels] == [None] * 6


def test_an_answer_that_was_changed_is_refused(frames: list[Atoms], tmp_path: Path) -> None:
    folder = tmp_path / "000" / "labels"
    labels_of(folder, frames[:1], asking(tmp_path / "log"))
    answer = folder / "000" / "answer.json"
    whole = answer.read_text()
    for broken in (whole[:-5], whole.replace("energy", "energie"), "[]", ""):
        answer.write_text(broken)
        with pytest.raises(store.DamagedStateError, match="does not match its checksum"):
            labels_of(folder, frames[:1], asking(tmp_path / "log"))
    shutil.rmtree(folder / "000")
    assert labels_of(folder, frames[:1], asking(tmp_path / "log"))[0].failure is None
