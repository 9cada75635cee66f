"""Data that changed under a run: levels of theory and elements go by name, never by place."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import ase.io
import pytest
import torch
from ase.data import chemical_symbols

from evenfield.core.rich_console import Console
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain import run
from evenfield.pretrain.checkpoints import run_data
from evenfield.pretrain.checkpoints.new_heads import filled_up
from evenfield.pretrain.checkpoints.resume import look_for_run
from evenfield.pretrain.errors import ResumeError
from evenfield.pretrain.initial_potential import build_potential

from optimizer_steps import batch_of, engine_steps, new_engine


HEADS = ("readout.weight", "readout.element_weight", "repulsion.log_factor", "e0", "scale")


def data_set(structures: list[Structure], folder: Path) -> str:
    """Every fourth structure tests; the source is always the same."""
    parts = []
    for number, structure in enumerate(structures):
        split = "test" if number % 4 == 0 else "train"
        # the same structure may be there at several levels of theory
        name = f"{structure.level_of_theory}-{number}"
        parts.append(replace(structure, split=split, structure_id=name, group=name))
    write_data_set(parts, folder, {"file": "one", "sha256": "of one file"}, ConvertConfig())
    return str(folder)


@pytest.fixture
def levels(train_structures) -> dict[str, list[Structure]]:
    """EMT has a few more structures than EMT-scaled, and so is the first head."""
    own = {"EMT": 20, "EMT-scaled": 14}
    return {
        level: [one for one in train_structures if one.level_of_theory == level][:number]
        for level, number in own.items()
    }


@pytest.fixture
def begun(run_config, levels, tmp_path):
    """Changes of the config for a run of two steps on both levels, and its model."""

    def begin(**changes):
        data = data_set([*levels["EMT"], *levels["EMT-scaled"]], tmp_path / "first")
        settings = {"max_steps": 2, "average": {"decay": 0.9}} | changes
        model = run.pretrain(run_config(data=data, **settings), quiet=True)
        return settings, load(model).potential

    return begin


def renamed(structures: list[Structure], level: str) -> list[Structure]:
    return [replace(one, level_of_theory=level) for one in structures]


def test_heads_keep_their_names_when_another_level_has_become_the_largest(
    begun, run_config, levels, tmp_path
):
    settings, before = begun()
    assert before.config.levels_of_theory == ["EMT", "EMT-scaled"]
    structures = [*levels["EMT"], *levels["EMT-scaled"], *levels["EMT-scaled"]]
    swapped = data_set(structures, tmp_path / "second")
    fresh = build_potential(run_config(data=swapped), run_config(data=swapped).open_data())
    assert fresh.config.levels_of_theory == ["EMT-scaled", "EMT"]

    config = run_config(data=swapped, **settings)
    with pytest.raises(ResumeError, match="they have 36 training structures instead of 25") as told:
        run.pretrain(config, "auto", quiet=True)
    assert "--changed-data" in told.value.remedy

    # no step is left, so the model that is written again is the saved one
    model = run.pretrain(config, "auto", quiet=True, changed_data=True)
    after = load(model).potential
    assert after.config == before.config
    weights = after.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in before.state_dict().items())


def test_level_of_another_name_is_another_level(begun, run_config, levels, tmp_path):
    """Even where the structures are the same, and whatever the user allows."""
    settings, _ = begun()
    structures = [*levels["EMT"], *renamed(levels["EMT-scaled"], "PBE")]
    data = data_set(structures, tmp_path / "second")
    config = run_config(data=data, **settings)
    for allowed in (False, True):
        with pytest.raises(
            ResumeError,
            match="they lack level of theory EMT-scaled; they add level of theory PBE; "
            "the structures of EMT-scaled are at PBE now",
        ) as told:
            run.pretrain(config, "must", quiet=True, changed_data=allowed)
        assert "--changed-data" not in told.value.remedy


def test_a_level_in_another_spelling_is_named(begun, run_config, levels, tmp_path):
    """It was said to be missing, and the new spelling to be added."""
    settings, _ = begun()
    structures = [*levels["EMT"], *renamed(levels["EMT-scaled"], "emt_scaled")]
    config = run_config(data=data_set(structures, tmp_path / "second"), **settings)
    problem = "'emt_scaled' is spelt almost like 'EMT-scaled' of the run"
    with pytest.raises(ResumeError, match=problem) as told:
        run.pretrain(config, "must", quiet=True, changed_data=True)
    assert "level_of_theory='EMT-scaled' if it is the same" in told.value.remedy


def shifted(structures: list[Structure], level: str, energy: float) -> list[Structure]:
    """At another level of theory, whose energies are higher by `energy` eV/atom."""
    return [
        replace(one, level_of_theory=level).with_labels(energy=one.energy + energy * len(one))
        for one in structures
    ]


def only_at(structures: list[Structure], level: str) -> list[Structure]:
    return [one for one in structures if one.level_of_theory == level]


@pytest.mark.parametrize("zero", [3.0, 17.0])
def test_swapped_names_of_two_levels_are_refused(run_config, levels, tmp_path, zero):
    first = [*levels["EMT"], *shifted(levels["EMT"], "other", zero)]
    run.pretrain(run_config(data=data_set(first, tmp_path / "first"), max_steps=2), quiet=True)
    names = {"EMT": "other", "other": "EMT"}
    # labelled anew, so that no energy is the same to the last digit
    second = [one for level in names for one in shifted(only_at(first, level), names[level], 1e-6)]
    config = run_config(data=data_set(second, tmp_path / "second"), max_steps=3)
    with pytest.raises(ResumeError, match=r"levels of theory \w+, \w+ look swapped") as told:
        run.pretrain(config, "must", quiet=True, changed_data=True)
    assert "from the head of other" in told.value.message
    assert not list(Path(config.out).glob("checkpoints/step-*3"))

    # the same data with their right names
    third = data_set([*first, *levels["EMT"][:4]], tmp_path / "third")
    again = run_config(data=third, max_steps=3)
    assert run.pretrain(again, "must", quiet=True, changed_data=True) is not None


@pytest.mark.parametrize("grown", [False, True])
def test_swapped_names_are_known_by_the_energies_themselves(run_config, levels, tmp_path, grown):
    """Also where levels are so near each other that a short run cannot tell their heads apart."""
    first = [*levels["EMT"][:14], *shifted(levels["EMT"][6:], "other", 0.01)]
    run.pretrain(run_config(data=data_set(first, tmp_path / "first"), max_steps=2), quiet=True)
    names = {"EMT": "other", "other": "EMT"}
    second = [replace(one, level_of_theory=names[one.level_of_theory]) for one in first]
    if grown:
        second += [*shifted(levels["EMT"], "EMT", 0.5), *shifted(levels["EMT"], "other", 0.6)]
    config = run_config(data=data_set(second, tmp_path / "second"), max_steps=3)
    with pytest.raises(ResumeError, match="the structures of other are at EMT now") as told:
        run.pretrain(config, "must", quiet=True, changed_data=True)
    assert "the structures of EMT are at other now" in told.value.message
    assert "--changed-data" not in told.value.remedy


def test_a_level_that_takes_in_another_one_is_the_same_level(run_config, levels, tmp_path):
    first = [*levels["EMT"][:14], *shifted(levels["EMT"][6:], "other", 0.01)]
    run.pretrain(run_config(data=data_set(first, tmp_path / "first"), max_steps=2), quiet=True)
    # all structures under the first name, and more at the second
    second = renamed(first, "EMT") + first[14:]
    config = run_config(data=data_set(second, tmp_path / "second"), max_steps=3)
    assert run.pretrain(config, "must", quiet=True, changed_data=True) is not None


def test_a_level_with_another_zero_is_named(run_config, levels, tmp_path, capsys):
    first = data_set(levels["EMT"], tmp_path / "first")
    run.pretrain(run_config(data=first, max_steps=2), quiet=True)
    second = data_set(shifted(levels["EMT"], "EMT", 5.0), tmp_path / "second")
    run.pretrain(run_config(data=second, max_steps=3), "must", changed_data=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: energies at EMT are 5" in told and "from what its head predicts" in told


def test_other_labels_of_the_same_source_are_other_data(begun, run_config, levels, tmp_path):
    settings, _ = begun()
    structures = [*levels["EMT"], *levels["EMT-scaled"]]
    shifted = [one.with_labels(energy=one.energy + 1.0) for one in structures]
    data = data_set(shifted, tmp_path / "second")
    with pytest.raises(ResumeError, match="content of structures or labels differs"):
        run.pretrain(run_config(data=data, **settings), "must", quiet=True)


def test_new_elements_get_their_e0_and_nothing_else_moves(run_config, levels, tmp_path):
    one_level = levels["EMT"]
    present = sorted({z for one in one_level for z in one.elements.tolist()})
    rare = present[-1]
    few = [one for one in one_level if rare not in one.elements]
    settings = {"max_steps": 2}
    config = run_config(data=data_set(few, tmp_path / "first"), **settings)
    before = load(run.pretrain(config, quiet=True)).potential

    grown = run_config(data=data_set([*few, *one_level], tmp_path / "second"), **settings)
    fresh = build_potential(grown, grown.open_data())
    assert fresh.config.num_neighbours != before.config.num_neighbours

    said = io.StringIO()
    begun = look_for_run(grown, grown.open_data(), "must", Console(file=said), changed_data=True)
    assert begun is not None and not begun.same_data
    assert f"they add {chemical_symbols[rare]} at EMT" in " ".join(said.getvalue().split())

    after = load(run.pretrain(grown, "must", quiet=True, changed_data=True)).potential
    assert after.config == before.config
    assert after.e0[0, rare] == fresh.e0[0, rare] != before.e0[0, rare]
    expected = before.state_dict()
    expected["e0"][0, rare] = fresh.e0[0, rare]
    weights = after.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in expected.items())


@pytest.mark.parametrize(("optimizer", "stage"), [("soap", 0), ("adamw", 0), ("adamw", 1)])
def test_new_level_gets_a_head_behind_the_others(
    begun, run_config, levels, tmp_path, optimizer, stage
):
    changes = {"optimizer": {"name": optimizer}, "engine": {"zero_stage": stage}}
    settings, before = begun(**changes)
    structures = [*levels["EMT"], *levels["EMT-scaled"], *renamed(levels["EMT"], "new") * 2]
    grown = run_config(data=data_set(structures, tmp_path / "second"), **settings)
    after = load(run.pretrain(grown, "auto", quiet=True, changed_data=True)).potential
    assert after.config.levels_of_theory == ["EMT", "EMT-scaled", "new"]
    weights = after.state_dict()
    for name, weight in before.state_dict().items():
        own = weights[name]
        if name in HEADS:
            assert len(own) == 3
            own = own[:2]
        assert torch.equal(own, weight), name

    # a step on the new data is saved with them, and continued as any other
    for max_steps, changed in ((3, True), (4, False)):
        longer = run_config(data=grown.data, **settings | {"max_steps": max_steps})
        assert run.pretrain(longer, "must", quiet=True, changed_data=changed) is not None


def test_only_tensors_that_lack_heads_are_filled_up():
    saved = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4), "c": torch.zeros(5)}
    own = {"a": torch.ones(3, 3), "b": torch.ones(3, 5), "c": torch.ones(5)}
    completed = filled_up(saved, own, num_saved=2)
    assert completed["a"].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert completed["b"] is saved["b"] and completed["c"] is saved["c"]


@pytest.mark.parametrize("optimizer", ["soap", "adamw"])
def test_state_of_another_shape_is_refused_and_never_broadcast(train_structures, optimizer):
    """One saved head would become all heads; one moment would become all moments."""
    engine = new_engine(0, optimizer=optimizer)
    engine_steps(engine, [[batch_of(train_structures[:4])]])
    for name in ("weight/potential.e0", "exp_avg/potential.readout.weight"):
        state = engine.state()
        state[name] = state[name][:1]
        with pytest.raises(ResumeError, match=rf"{name} has shape \(1, \d+\) in the checkpoint"):
            engine.load_state(state)


@pytest.mark.parametrize("swapped", [False, True])
def test_sets_of_a_mixture_are_known_by_name(emt_file, run_config, tmp_path, swapped):
    """The stream's position in a set belongs to its folder's name."""
    frames = ase.io.read(emt_file, ":")
    config = ConvertConfig(columns={"level_of_theory": "level"}, split_by="structure")
    for place, names in {"one": ("a", "b"), "two": ("b", "a") if swapped else ("a", "b")}.items():
        for name, part in zip(names, (frames[::2], frames[1::2]), strict=True):
            (tmp_path / place).mkdir(exist_ok=True)
            ase.io.write(tmp_path / place / f"{name}.extxyz", part)
            convert(tmp_path / place / f"{name}.extxyz", tmp_path / place / name, config)
    sets = {
        place: [str(tmp_path / place / name) for name in ("a", "b")] for place in ("one", "two")
    }
    run.pretrain(run_config(data=sets["one"], max_steps=2), quiet=True)
    moved = run_config(data=sets["two"][::-1], max_steps=3)
    if swapped:
        with pytest.raises(ResumeError, match="content of structures or labels differs"):
            run.pretrain(moved, "must", quiet=True)
    else:
        assert run.pretrain(moved, "must", quiet=True) is not None


def test_copies_within_the_data_themselves_are_no_fault_of_the_run(levels, tmp_path, monkeypatch):
    """Their conversion has told of them; moving the splits would not help."""
    data = Collection([data_set(levels["EMT"], tmp_path / "data")])
    learned = run_data.RunData.of(data)
    # as if every structure that tests were in the training split as well
    monkeypatch.setattr(run_data, "HELD_OUT", ("train",))
    assert learned.learned and learned.known_in(data) == []


def test_held_out_structures_that_were_trained_on_are_named(
    run_config, levels, tmp_path, capsys, monkeypatch
):
    """The splits moved with the data, and errors on the new test split would look too good."""

    def told_of(number: int) -> str:
        # every fourth structure tests, from another one on
        data = data_set(levels["EMT"][number:], tmp_path / f"from {number}")
        config = run_config(data=data, max_steps=2 + number)
        run.pretrain(config, "auto", changed_data=True)
        return " ".join(capsys.readouterr().out.split())

    assert "has trained on" not in told_of(0)
    assert "warning: the run has trained on 5 of the 5 test structures: errors" in told_of(1)
    # the first data are remembered through the second
    assert "the run has trained on 5 of the 5 test structures" in told_of(2)

    monkeypatch.setattr(run_data, "MOST_LEARNED", 4)
    assert "test structures that could be compared: errors" in told_of(3)
