"""A whole pretraining run: what it learns, what it writes, and data that lack something."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evenfield.core.destination import PAGE_MARK, DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.core.labels import LABELS
from evenfield.core.rich_console import Console
from evenfield.core.seals import unsealed
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.census.domain import domain_of
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.model_zoo.evaluation.evaluation import evaluate, predict
from evenfield.model_zoo.evaluation.summary import summarise
from evenfield.model_zoo.hub.load import load
from evenfield.pretrain import run
from evenfield.pretrain.callbacks import saving
from evenfield.pretrain.callbacks.callback import StepReport
from evenfield.pretrain.callbacks.metrics import Metrics, ProgressBar
from evenfield.pretrain.checkpoints import run_folder
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.errors import ResumeError
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.run import pretrain


STEP_FIGURES = (
    "loss",
    "learning_rate",
    "structures_per_s",
    "edges_per_s",
    "data_wait_share",
    "seconds",
)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- a whole run


@pytest.fixture(scope="module")
def finished(data_set, tmp_path_factory) -> PretrainConfig:
    """150 steps, with validations at 75 and 150."""
    config = PretrainConfig(
        data=str(data_set),
        out=str(tmp_path_factory.mktemp("runs") / "small"),
        licence="CC0-1.0",
        seed=1,  # energies of 36 structures, learned from 68, differ by a fifth from seed to seed
        max_steps=150,
        evaluate_every=75,
        evaluate_structures=20,
        model={
            "channels": 8,
            "l_max": 2,
            "num_layers": 2,
            "readout_size": 16,
            "radial_hidden": 16,
            "cutoff": 4.0,
        },
        stream={"edge_budget": 1500, "window_blocks": 3},
        optimizer={"learning_rate": 0.005},
        schedule={"warmup_steps": 5},
        checkpoints={"every": 60},
    )
    assert pretrain(config, quiet=True) == Path(config.out) / "model"
    return config


def test_it_learns(finished):
    losses = np.array(
        [row["loss"] for row in rows_of(Path(finished.out)) if row["event"] == "step"]
    )
    assert np.median(losses[-12:]) < 0.55 * np.median(losses[:12])  # over two epochs each
    bare = finished.model_copy(
        update={"model": finished.model.model_copy(update={"repulsion": False})}
    )
    with_prior, without = (
        build_potential(config, config.open_data()) for config in (finished, bare)
    )
    trained = load(f"{finished.out}/model").potential
    new, fresh, blank = (
        evaluate(potential, iter_structures(finished.data, "valid"), "valid")
        for potential in (trained, with_prior, without)
    )
    assert new.force_mae < 0.8 * fresh.force_mae and new.force_mae < 0.25 * blank.force_mae
    assert new.energy_mae_per_atom < min(fresh.energy_mae_per_atom, blank.energy_mae_per_atom)


def test_every_step_has_one_whole_row(finished):
    rows = [row for row in rows_of(Path(finished.out)) if row["event"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert [row["epoch"] for row in rows] == [k // 6 for k in range(150)]
    for row in rows:
        assert all(np.isfinite(row[name]) and row[name] >= 0 for name in STEP_FIGURES)
        assert row["data_wait_share"] <= 1 and "bad_structures" not in row


def test_validations_are_among_the_metrics(finished):
    rows = [row for row in rows_of(Path(finished.out)) if row["event"] == "evaluation"]
    assert [row["step"] for row in rows] == [75, 150]
    assert all(row["split"] == "valid" and row["num_structures"] == 20 for row in rows)
    assert all(0 < row["force_mae"] < 0.2 * row["force_rms"] for row in rows)


def test_saved_config_is_the_resolved_one(finished):
    saved = yaml.safe_load((Path(finished.out) / "config.yaml").read_text())
    assert PretrainConfig.model_validate(saved) == finished
    assert saved["optimizer"]["clip_norm"] == 10.0  # defaults are written out


def test_published_model_predicts_what_was_evaluated(finished):
    """Loaded again: the figures in evaluation.json and the arrays in predictions.npz."""
    out = Path(finished.out)
    model = load(out / "model")
    structures = list(iter_structures(finished.data, "test"))
    predictions = predict(model.potential, structures)
    levels = read_census(finished.data)["levels_of_theory"]
    counts = {level: row["train_elements"] for level, row in levels.items()}
    written = unsealed((out / "evaluation.json").read_text())
    assert summarise(predictions, "test", level_counts=counts).to_dict() == written
    assert (out / "evaluation.json").read_bytes() == (
        out / "model" / "evaluation.json"
    ).read_bytes()
    with np.load(out / "predictions.npz", allow_pickle=False) as saved:
        assert np.array_equal(
            saved["predicted_forces"], predictions.forces[..., 1].astype(np.float32)
        )
        assert np.array_equal(
            saved["predicted_energy_per_atom"], predictions.energy[:, 1] / predictions.num_atoms
        )


def test_calculator_agrees_with_the_predictions(finished):
    """One structure at a time, through ase."""
    model = load(Path(finished.out) / "model")
    structure = next(s for s in iter_structures(finished.data, "test") if s.pbc.all())
    single = predict(model.potential, [structure])
    atoms = structure.to_atoms()
    # a pair of its elements may have been held out as a whole
    level = structure.level_of_theory
    atoms.calc = model.calculator(level_of_theory=level, warn_outside=False)
    assert np.allclose(atoms.get_forces(), single.forces[..., 1], atol=1e-5)
    head = model.potential.config.levels_of_theory.index(structure.level_of_theory)
    e0 = model.potential.e0[head, torch.as_tensor(structure.atomic_numbers)].sum().item()
    assert atoms.get_potential_energy() - e0 == pytest.approx(single.energy[0, 1], abs=1e-4)
    assert np.allclose(atoms.get_stress(voigt=False), single.stress[0, ..., 1], atol=1e-6)


def test_model_knows_where_each_level_has_training_structures(finished, train_structures):
    domains = load(Path(finished.out) / "model").domains
    levels = {structure.level_of_theory for structure in train_structures}
    assert set(domains) == levels and len(levels) > 1
    for level in levels:
        own = [one for one in train_structures if one.level_of_theory == level]
        expected = domain_of(own)
        assert domains[level].pairs == pytest.approx(expected.pairs, abs=0.0101)
        assert domains[level].boundaries == expected.boundaries
        assert domains[level].atoms == expected.atoms


def test_record_says_where_the_model_comes_from(finished, train_structures):
    record = load(Path(finished.out) / "model").record
    assert (record.name, record.licence, record.training["ranks"]) == ("small", "CC0-1.0", 1)
    assert (
        record.training_data[0].name == "metals.extxyz"
        and record.training_data[0].licence == "CC0-1.0"
    )
    assert record.training_data[0].num_structures == len(train_structures)
    assert record.training["config"]["max_steps"] == 150
    assert not {"data", "out"} & record.training["config"].keys()  # paths are nobody's business
    assert finished.out not in (Path(finished.out) / "model" / "config.json").read_text()


def test_checkpoints_are_those_of_the_rule(finished):
    names = sorted(p.name for p in (Path(finished.out) / "checkpoints").glob("step-*"))
    assert names == ["step-00000120", "step-00000150"]


# --- a model from its data


def test_fresh_potential_is_scaled_by_its_data(run_config, train_structures):
    config = run_config(model=run_config().model.model_dump() | {"repulsion": False})
    potential = build_potential(config, config.open_data())
    census = read_census(config.data)["levels_of_theory"]
    assert potential.config.levels_of_theory == ["EMT", "EMT-scaled"]  # the common one first
    for head, level in enumerate(potential.config.levels_of_theory):
        forces = np.concatenate(
            [s.forces.ravel() for s in train_structures if s.level_of_theory == level]
        )
        assert float(potential.scale[head]) == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-5)
        assert float(potential.e0[head, 29]) == census[level]["e0"]["Cu"]
    graphs = predict(potential, train_structures[:1])
    assert np.isfinite(graphs.energy).all()
    neighbours = [len(neighbours_of(s, 4.0)) / len(s) for s in train_structures]
    sizes = [len(s) for s in train_structures]
    assert potential.config.num_neighbours == pytest.approx(
        np.average(neighbours, weights=sizes), rel=1e-6
    )


def test_scale_and_e0_are_those_of_what_the_repulsion_leaves(run_config, train_structures):
    config = run_config()
    potential = build_potential(config, config.open_data())
    e0, scale = potential.e0.clone(), potential.scale.clone()
    torch.nn.init.zeros_(potential.readout.weight)
    potential.e0.zero_()
    for head, level in enumerate(potential.config.levels_of_theory):
        own = [s for s in train_structures if s.level_of_theory == level]
        alone = predict(potential, own)
        left = alone.forces[..., 0] - alone.forces[..., 1]
        assert float(scale[head]) == pytest.approx(np.sqrt((left**2).mean()), rel=1e-4)
        composition = np.array(
            [[(s.atomic_numbers == z).mean() for z in (13, 28, 29, 46, 47, 78, 79)] for s in own]
        )
        target = (alone.energy[:, 0] - alone.energy[:, 1]) / [len(s) for s in own]
        solution, *_ = np.linalg.lstsq(composition, target, rcond=None)
        assert e0[head, [13, 28, 29, 46, 47, 78, 79]].numpy() == pytest.approx(solution, abs=1e-3)


def neighbours_of(structure, cutoff: float) -> np.ndarray:
    from ase.neighborlist import neighbor_list

    return neighbor_list("i", structure.to_atoms(), cutoff)


def test_same_seed_same_weights_other_seed_others(run_config):
    torch.manual_seed(1)
    one = pretrain(run_config("one", max_steps=2), quiet=True)
    torch.manual_seed(2)
    two = pretrain(run_config("two", max_steps=2), quiet=True)
    other = pretrain(run_config("other", max_steps=2, seed=1), quiet=True)
    weights = [(model / "model.safetensors").read_bytes() for model in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]


# --- metrics and the way to resume


def test_resume_drops_later_rows_and_a_cut_off_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"event": "step", "step": step}) for step in range(1, 7)]
    rows.insert(4, json.dumps({"event": "evaluation", "step": 4}))
    path.write_text("\n".join(rows) + '\n{"event": "st')
    metrics = Metrics(path, start_step=4)
    metrics.write({"event": "step", "step": 5})
    metrics.close()
    assert [(row["event"], row["step"]) for row in rows_of(tmp_path)] == [
        *(("step", step) for step in range(1, 5)),
        ("evaluation", 4),
        ("step", 5),
    ]


def test_rows_of_a_step_are_written_before_its_checkpoint(run_config, monkeypatch):
    """Otherwise a kill after the checkpoint would leave a gap: no resume repeats the step."""
    config = run_config(
        max_steps=4, evaluate_every=2, evaluate_structures=2, checkpoints={"every": 2}
    )
    seen = []
    original = saving.save_checkpoint

    def save(folder, step, *args):
        rows = rows_of(Path(config.out))
        seen.append((step, {row["event"] for row in rows if row["step"] == step}))
        return original(folder, step, *args)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    pretrain(config, quiet=True)
    assert seen == [(2, {"step", "evaluation"}), (4, {"step", "evaluation"})]


def test_second_run_into_the_same_folder_is_refused_unless_it_resumes(run_config):
    """Else the pruning would keep the old run's checkpoints and delete the new one's."""
    config = run_config(max_steps=3)
    model = pretrain(config, quiet=True)
    weights, metrics = (
        (model / "model.safetensors").read_bytes(),
        (Path(config.out) / "metrics.jsonl").read_bytes(),
    )
    with pytest.raises(
        ResumeError,
        match=r"run: already holds a run, saved at step-00000003: add --resume auto to continue",
    ):
        pretrain(config, quiet=True)
    assert (Path(config.out) / "metrics.jsonl").read_bytes() == metrics
    assert (
        pretrain(config, resume="must", quiet=True) == model
    )  # nothing left to do: the results are written again
    assert (model / "model.safetensors").read_bytes() == weights
    longer = run_config(max_steps=5)
    pretrain(longer, resume="must", quiet=True)
    assert [row["step"] for row in rows_of(Path(config.out))] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("resume", ["no", "auto"])
def test_occupied_folder_is_refused_before_anything_is_computed(run_config, monkeypatch, resume):
    monkeypatch.setattr(run, "build_potential", None)
    config = run_config()
    note = Path(config.out) / "notes.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(DestinationError, match=r"run: already exists and holds notes\.txt"):
        pretrain(config, resume, quiet=True)
    with pytest.raises(DestinationError, match="which evenfield did not write"):
        pretrain(config, quiet=True, overwrite=True)
    assert [path.name for path in note.parent.iterdir()] == ["notes.txt"]

    file = run_config("file")
    Path(file.out).write_text("mine")
    with pytest.raises(DestinationError, match="a file of 4 bytes"):
        pretrain(file, resume, quiet=True)
    inside = run_config(out=config.data)
    with pytest.raises(DestinationError, match="is read by this command"):
        pretrain(inside, resume, quiet=True, overwrite=resume == "no")


def test_what_an_early_kill_leaves_is_in_nobodys_way(run_config):
    config = run_config(max_steps=1)
    Path(config.out).mkdir()
    for name in (".lock", ".config.yaml.0a1b2c3d.tmp"):
        (Path(config.out) / name).write_text("half")
    assert pretrain(config, quiet=True) is not None


class Failure(Exception):
    """Raised by a test at a given point of a run."""


def test_overwritten_run_stays_until_the_new_one_has_ended(run_config, monkeypatch, capsys):
    config = run_config(max_steps=2)
    model = pretrain(config, quiet=True)
    weights = (model / "model.safetensors").read_bytes()
    kept = Path(f"{config.out}.old-1")
    other = run_config(max_steps=3, seed=5)

    # before anything is written: the old run is back in its place
    def fail(*_, **__):
        raise Failure

    with monkeypatch.context() as patch, pytest.raises(Failure):
        patch.setattr(run, "build_potential", fail)
        pretrain(other, quiet=True, overwrite=True)
    assert (model / "model.safetensors").read_bytes() == weights and not kept.exists()

    # in the middle: the new run can be resumed, and the old one is next to it
    with monkeypatch.context() as patch, pytest.raises(Failure):
        patch.setattr(run, "save_model", fail)
        pretrain(other, overwrite=True)
    assert f"is kept as {kept} until the new run has ended" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (kept / "model" / "model.safetensors").read_bytes() == weights
    assert not model.exists()

    # to its end
    shutil.rmtree(config.out)
    kept.rename(config.out)
    pretrain(other, quiet=True, overwrite=True)
    assert (model / "model.safetensors").read_bytes() != weights
    assert not kept.exists()
    assert [row["step"] for row in rows_of(Path(config.out))] == [1, 2, 3]


def test_an_old_run_whose_removal_was_killed_goes_with_the_next_one(run_config, monkeypatch):
    """Half of it stayed for ever under the name of an old run."""
    config = run_config(max_steps=1)
    pretrain(config, quiet=True)
    with monkeypatch.context() as patch:
        # killed before the first file was removed
        patch.setattr(run_folder.shutil, "rmtree", lambda *_, **__: None)
        pretrain(config, quiet=True, overwrite=True)
    out = Path(config.out)
    assert (out.parent / f".{out.name}.old-1.removed" / "config.yaml").is_file()
    pretrain(config, quiet=True, overwrite=True)
    left = [path.name for path in out.parent.iterdir() if ".old-" in path.name]
    assert left == []


def test_files_of_a_user_stay_in_a_run_folder_that_is_overwritten(run_config):
    config = run_config(max_steps=1)
    pretrain(config, quiet=True)
    out = Path(config.out)
    mine = ["notes.txt", "model/paper.pdf", "checkpoints/why.txt", "plots/a/b.png"]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    made_by_the_old_run = ["watch.html", "hang-rank-3.txt", "checkpoints/step-00000009/rng"]
    for name in made_by_the_old_run:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(PAGE_MARK)

    pretrain(run_config(max_steps=2, seed=5), quiet=True, overwrite=True)

    assert {(out / name).read_text() for name in mine} == {"mine"}
    assert not any((out / name).exists() for name in made_by_the_old_run)
    assert [row["step"] for row in rows_of(out)] == [1, 2]
    assert [path.name for path in out.parent.glob("*.old-*")] == []
    assert load(out / "model").record.training["config"]["seed"] == 5


def test_progress_bar_survives_a_step_without_a_loss():
    bar = ProgressBar(Console(file=io.StringIO()), max_steps=10, start_step=0)
    shown = []
    for step, loss in enumerate((float("nan"), 2.0, float("inf"), 2.0), start=1):
        bar.on_report(None, StepReport(step, 0, loss, 1e-3, 10, 100, 0.1, 0.5))
        shown.append(bar._bar.tasks[0].fields["figures"].split("  ")[:2])
    bar.close()
    assert shown == [["loss nan", "20 structures/s"], *[["loss 2.000", "20 structures/s"]] * 3]


# --- data that lack something


def data_of(structures, folder: Path, labels: tuple[str, ...] = tuple(LABELS)) -> str:
    """A data set with these labels; every fourth structure tests, every fifth validates."""
    parts = []
    for number, structure in enumerate(structures):
        kept = {name: value for name, value in structure.labels.items() if name in labels}
        split = "test" if number % 4 == 0 else "valid" if number % 5 == 0 else "train"
        parts.append(replace(structure, labels=kept, split=split))
    write_data_set(parts, folder, {"file": "part", "sha256": ""}, ConvertConfig())
    return str(folder)


def test_energies_alone_are_enough(run_config, train_structures, tmp_path, capsys):
    data = data_of(train_structures[:24], tmp_path / "data", ("energy",))
    model = pretrain(run_config(data=data, max_steps=4, evaluate_every=2))
    evaluation = json.loads((model / "evaluation.json").read_text())
    assert evaluation["energy_mae_per_atom"] > 0 and evaluation["force_mae"] is None
    assert "step 2: valid energy MAE" in capsys.readouterr().out
    assert "Errors on the test split" in (model / "README.md").read_text()


def test_level_of_theory_that_only_the_held_out_splits_have(run_config, train_structures, tmp_path):
    """It has no head, so it cannot be evaluated; the run must not die of it after hours."""
    structures = [s for s in train_structures if s.level_of_theory == "EMT"][:24]
    strange = {0: "rare", 5: "rare"}  # one for testing, one for validation
    structures = [
        replace(s, level_of_theory=strange.get(k, "EMT")) for k, s in enumerate(structures)
    ]
    data = data_of(structures, tmp_path / "data")
    model = pretrain(run_config(data=data, max_steps=2, evaluate_every=2), quiet=True)
    evaluation = json.loads((model / "evaluation.json").read_text())
    assert set(evaluation["levels"]) == {"EMT"} and evaluation["num_structures"] == 5


def test_elements_that_only_the_held_out_splits_have_are_not_evaluated(
    run_config, train_structures, tmp_path, capsys
):
    """They have no reference energies: one of them was 97 eV/atom off, and hid all others."""
    structures = [s for s in train_structures if s.level_of_theory == "EMT"][:24]
    numbers = np.full(len(structures[0].atomic_numbers), 79)
    strange = [replace(structures[0], atomic_numbers=numbers, structure_id=f"x{k}") for k in (0, 1)]
    known = [replace(s, atomic_numbers=np.full(len(s.atomic_numbers), 29)) for s in structures]
    # `data_of` tests on the first structure and validates on the sixth
    parts = [strange[0], *known[:4], strange[1], *known[4:]]
    data = data_of(parts, tmp_path / "data")
    model = pretrain(run_config(data=data, max_steps=2, evaluate_every=2))

    evaluation = json.loads((model / "evaluation.json").read_text())
    assert list(evaluation["per_element"]) == ["Cu"]
    rows = map(json.loads, (model.parent / "metrics.jsonl").read_text().splitlines())
    validations = [row for row in rows if row["event"] == "evaluation"]
    assert all(list(row["per_element"]) == ["Cu"] for row in validations)
    assert "not evaluated: 1 at 'EMT' with Au, not learned at this level" in capsys.readouterr().out


@pytest.mark.parametrize("judged", ["test", "valid", None])
def test_a_split_of_unlearned_elements_alone_judges_nothing(
    run_config, train_structures, tmp_path, judged
):
    """It is found before the first step, and not when hours of training are over."""
    known = replace(train_structures[0], atomic_numbers=np.full(len(train_structures[0]), 29))
    strange = replace(known, atomic_numbers=np.full(len(known), 79))
    parts = [replace(known, structure_id=f"k{k}", split="train") for k in range(4)]
    for split in ("test", "valid"):
        one = known if split == judged else strange
        parts.append(replace(one, structure_id=split, split=split))
    folder = tmp_path / "data"
    write_data_set(parts, folder, {"file": "part", "sha256": ""}, ConvertConfig())

    config = run_config(data=str(folder), max_steps=2, evaluate_every=1)
    if judged is None:
        with pytest.raises(EvenfieldError, match=r"holds no structure to test on .* learns"):
            pretrain(config, quiet=True)
        return
    evaluation = json.loads((pretrain(config, quiet=True) / "evaluation.json").read_text())
    assert evaluation["split"] == judged and list(evaluation["per_element"]) == ["Cu"]


@pytest.mark.parametrize("split", ["test", "valid"])
def test_one_held_out_split_is_enough(run_config, train_structures, tmp_path, split):
    parts = [
        replace(s, split=split if k < 3 else "train") for k, s in enumerate(train_structures[:12])
    ]
    write_data_set(parts, tmp_path / "data", {"file": "part", "sha256": ""}, ConvertConfig())
    model = pretrain(
        run_config(data=str(tmp_path / "data"), max_steps=2, evaluate_every=1), quiet=True
    )
    assert json.loads((model / "evaluation.json").read_text())["split"] == split


def test_data_without_anything_held_out_are_refused_before_the_training(
    run_config, train_structures, tmp_path
):
    parts = [replace(s, split="train") for s in train_structures[:4]]
    write_data_set(parts, tmp_path / "data", {"file": "part", "sha256": ""}, ConvertConfig())
    with pytest.raises(EvenfieldError, match="holds no structure to test on"):
        pretrain(run_config(data=str(tmp_path / "data")), quiet=True)
