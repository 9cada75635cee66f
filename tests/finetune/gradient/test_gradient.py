"""Gradient strategies: who learns, what stays, which step is kept, and what replay saves."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.gradient import config as gradient_config
from evenfield.finetune.gradient import replay as replaying
from evenfield.finetune.gradient.config import GradientConfig
from evenfield.finetune.gradient.keep_best import FEWEST_TO_CHOOSE, KeepBest
from evenfield.finetune.gradient.new_elements import start_from_neighbours
from evenfield.finetune.gradient.replay import Replay
from evenfield.finetune.gradient.replay import labelled_by as relabel
from evenfield.finetune.gradient.strategy import GradientStrategy
from evenfield.finetune.gradient.train import GradientReport, _stream
from evenfield.finetune.heads import member_levels, with_head
from evenfield.finetune.run import finetune
from evenfield.finetune.safety.forgetting import (
    PROBE_FILE,
    forgetting_report,
    probe_of,
    stored_probe,
)
from evenfield.finetune.safety.guard import HeldOut
from evenfield.finetune.safety.step0 import step
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.state import FineTuning
from evenfield.finetune.strategies import STRATEGIES
from evenfield.finetune.target import Target
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.package.record import ModelRecord, TrainingData
from evenfield.pretrain.errors import TrainingError


METALS = (13, 28, 29, 46, 47, 78, 79)
SHORT = GradientConfig(max_steps=8, evaluate_every=4)
GENTLE = GradientConfig(max_steps=24, evaluate_every=6, learning_rate=5e-4)
SOURCE = TrainingData(name="own", sha256="0", licence="CC0-1.0", num_structures=1)


@pytest.fixture
def single(potential):
    """The potential in float32, as it is trained."""
    return potential.float()


@pytest.fixture
def stiffer(single, structures, labelled_by) -> list:
    """Labels of a potential that binds a quarter more: every parameter has something to learn."""
    other = with_head(single, "EMT")
    with torch.no_grad():
        other.readout.weight[0] *= 1.25
        other.backbone.start.weight *= 1.1
    return labelled_by(other, structures)


def changed(before: dict, potential) -> set[str]:
    return {
        name
        for name, value in potential.state_dict().items()
        if not torch.equal(value, before[name])
    }


def train(potential, strategy, structures, valid=(), config=SHORT, **options):
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    held_out = HeldOut(potential, list(valid)) if valid else None
    new = sorted({int(z) for s in structures for z in s.elements} & {28, 78})
    report = STRATEGIES[strategy].train(
        potential, list(structures), held_out, config, new_elements=new, **options
    )
    return report, changed(before, potential)


def test_each_strategy_changes_what_it_says(single, stiffer):
    few = stiffer[:6]
    expected = {
        "readout": lambda name: name.startswith("readout."),
        "lora": lambda name: name.startswith("readout.") or "weight" in name,
        "new-element": lambda name: name == "backbone.embedding.weight",
        "full": lambda name: name not in ("e0", "scale"),
    }
    for strategy, allowed in expected.items():
        potential = with_head(single, "EMT")
        report, names = train(potential, strategy, few)
        assert names and all(map(allowed, names)), (strategy, names)
        assert report.steps == report.best_step == 8 and not report.interrupted
        assert all(p.requires_grad for p in potential.parameters())
        other_head = [
            n for n in names if n.startswith(("readout.weight", "readout.element", "repulsion"))
        ]
        state, start = potential.state_dict(), single.state_dict()
        assert all(torch.equal(state[n][1], start[n][1]) for n in other_head)


def test_new_element_moves_its_own_row_alone(single, structures, labelled_by):
    platinum = [s for s in structures if 78 in s.atomic_numbers]
    few = [s.with_labels(forces=1.3 * s.forces) for s in labelled_by(single, platinum)]
    before = single.backbone.embedding.weight.detach().clone()
    train(single, "new-element", few)
    moved = (single.backbone.embedding.weight != before).any(1).nonzero().flatten().tolist()
    assert moved and set(moved) <= {28, 78}
    with pytest.raises(EvenfieldError, match="no element that is new to the model"):
        STRATEGIES["new-element"].train(single, few, None, SHORT, new_elements=[])


def test_new_element_starts_between_its_neighbours(single):
    """Hafnium starts near zirconium, whose chemistry it shares, not at its untrained vector."""
    weight = single.backbone.embedding.weight
    start_from_neighbours(single, [72], {8, 22, 40, 55})
    nearest = torch.cdist(weight[72:73], weight[[8, 22, 40, 55]])[0].argsort().tolist()
    assert nearest[0] in (1, 2) and nearest[-1] in (0, 3)
    untouched = weight.detach().clone()
    start_from_neighbours(single, [72], set())
    assert torch.equal(weight, untouched)


def test_best_step_is_kept_and_none_above_the_bound(single, stiffer):
    """A rate that destroys the potential: the start is given back, bit for bit."""
    learned, held_out = stiffer[:9:2], stiffer[1:9:2]  # three metals in both
    before = {name: value.clone() for name, value in single.state_dict().items()}
    wild = SHORT.model_copy(update={"learning_rate": 3.0})
    report, names = train(single, "full", learned, held_out, wild)
    assert report.best_step == 0 and names == set()
    assert all(torch.equal(value, before[name]) for name, value in single.state_dict().items())
    start = step("", single, held_out)
    report, names = train(single, "full", learned, held_out, GENTLE)
    after = step("", single, held_out)
    assert report.best_step > 0 and names and after.force_mae < start.force_mae


class OnALine:
    """Held-out structures of a potential with one number x: beyond 0.5 it is too far off."""

    def __init__(self, number: int = 2) -> None:
        self.valid = [None] * number
        self.num_different = number

    def rank(self, potential: torch.nn.Linear) -> tuple[bool, float]:
        x = float(potential.weight.detach())
        return x > 0.5, abs(x - 0.3)

    def score(self, potential: torch.nn.Linear) -> float:
        above, total = self.rank(potential)
        return np.inf if above else total


def walk(line: torch.nn.Linear, steps: list[float], held_out: OnALine) -> KeepBest:
    line.weight.data.fill_(0.0)
    best = KeepBest(line, held_out, GradientConfig(max_steps=len(steps), evaluate_every=1))
    loop = SimpleNamespace(stop=SimpleNamespace(by=""))
    for k, value in enumerate(steps):
        line.weight.data.fill_(value)
        best.on_evaluate(loop, SimpleNamespace(step=k + 1))
    best.on_end(loop)
    return best


@pytest.mark.parametrize(
    ("steps", "share", "x"), [([1.0, 0.9], 0.4, 0.36), ([0.45, 1.0], 1.0, 0.45), ([-1.0], 0, 0)]
)
def test_part_of_the_way_is_kept_where_the_whole_is_above_a_bound(steps, share, x):
    line = torch.nn.Linear(1, 1, bias=False)
    best = walk(line, steps, OnALine())
    assert best.share == share and line.weight.item() == pytest.approx(x)
    assert (best.best_step > 0) == (share > 0)


@pytest.mark.parametrize(
    ("number", "step"), [(2, 2), (FEWEST_TO_CHOOSE - 1, 2), (FEWEST_TO_CHOOSE, 1)]
)
def test_few_held_out_structures_do_not_choose_among_good_steps(number, step):
    assert walk(torch.nn.Linear(1, 1, bias=False), [0.3, 0.45], OnALine(number)).best_step == step


def test_it_stops_when_nothing_gets_better(single, stiffer):
    wild = GradientConfig(max_steps=20, evaluate_every=2, patience=3, learning_rate=3.0)
    report, _ = train(single, "readout", stiffer[:4], stiffer[4:6], wild)
    assert (
        report.steps == 17 and not report.interrupted
    )  # looks at 12, 14, 16; the step under way is finished


@pytest.mark.parametrize(
    ("strategy", "replay", "rate"),
    [("full", False, 2e-3), ("full", True, 5e-4), ("lora", True, 5e-3)],
)
def test_rate_is_the_one_given_or_that_of_the_strategy(strategy, replay, rate):
    assert STRATEGIES[strategy].rate(GradientConfig(), replay=replay) == rate
    chosen = GradientConfig(learning_rate=0.1)
    assert STRATEGIES[strategy].rate(chosen, replay=replay) == 0.1


@pytest.mark.parametrize(("number", "steps"), [(4, 600), (99, 600), (100, 1800), (5000, 1800)])
def test_many_structures_are_trained_on_for_longer_unless_told(number, steps):
    assert GradientConfig().for_structures(number).steps == steps
    assert GradientConfig(max_steps=7).for_structures(number).steps == 7


@pytest.mark.parametrize("number", [12, 10, 9])
def test_replayed_structures_are_none_of_the_probe_unless_there_are_few(monkeypatch, number):
    monkeypatch.setattr(replaying, "iter_structures", lambda data, split: iter(range(number)))
    monkeypatch.setattr(replaying, "PROBE_SAMPLES", 5)
    probe, replayed = replaying.draw_probe("x"), replaying.draw_for_replay("x", 100, seed=3)
    assert len(probe) == 5 and replayed != replaying.draw_for_replay("x", 100, seed=4)
    assert set(probe).isdisjoint(replayed) == (number >= 10)


def test_every_batch_holds_new_and_replayed_structures_by_share(single, structures, tmp_path):
    new = [replace(one, structure_id=f"new-{k}") for k, one in enumerate(structures[:7])]
    config = GradientConfig(stream=StreamConfig(edge_budget=10**6, atom_budget=120, look_ahead=4))
    stream = _stream(tmp_path, new, Replay(structures, 0.25), single, config, seed=0)
    source = stream.batches()
    for batch in islice(source, 12):
        num_new = sum(name.startswith("new-") for name in batch.structure_ids)
        # each of the structures that wait for packing may be of one set or the other
        assert num_new == pytest.approx(0.75 * batch.num_structures, abs=4)
        assert 0 < num_new < batch.num_structures
    source.close()


def test_replay_keeps_more_than_none(single, structures, labelled_by, stiffer):
    """Trained on other labels of one kind of structure; replay of its own labels keeps the rest."""
    other = [s for s in structures if 13 not in s.atomic_numbers]
    target = [
        s.with_labels(forces=1.5 * s.forces, energy=None) for s in stiffer if 13 in s.atomic_numbers
    ]
    config = GradientConfig(max_steps=30, learning_rate=5e-3)
    own, generator = relabel(single, other), np.random.default_rng(0)
    # Labels of a data set never equal the model's own to the last bit. If they did, the first
    # gradients of the replay would be rounding errors, which Adam turns into whole steps.
    data_set = [
        s.with_labels(forces=s.forces + generator.normal(scale=0.01, size=s.forces.shape))
        for s in own[::2]
    ]
    drift = {}
    for name, replay in (("without", None), ("with", Replay(data_set, 0.5))):
        potential = with_head(single, "EMT")
        train(potential, "full", target, config=config, replay=replay)
        drift[name] = step(name, potential, own[1::2]).force_mae
    assert drift["with"] < 0.7 * drift["without"]


# --- the whole command


@pytest.fixture
def loaded(single) -> LoadedModel:
    elements = {"EMT": [chemical_symbols[z] for z in METALS], "EMT-scaled": ["Cu"]}
    return LoadedModel(single, ModelRecord(name="m", licence="MIT", elements=elements), "m")


def test_ensemble_and_forgetting_are_saved_with_the_model(loaded, stiffer, tmp_path):
    few = [replace(s, level_of_theory="new") for s in stiffer[:12]]
    config = FineTuneConfig(strategy="lora", ensemble=3, gradient=SHORT)
    result = finetune(loaded, Target("new", few[:9], few[9:], [], SOURCE), config)
    assert list(result.stages)[:3] == ["pretrained", "step0", "lora"]
    members = member_levels("new", 3)
    assert result.potential.config.levels_of_theory == ["EMT", "EMT-scaled", "new", *members]
    probe = probe_of(loaded)
    assert {s.group for s in probe} == {"pairs", "stretched crystals"}
    forgetting = forgetting_report(loaded.potential, result.potential, probe)
    assert [row.kind for row in forgetting.rows] == ["pairs", "stretched crystals"]
    assert all(row.before["forces"] < 1e-4 for row in forgetting.rows)  # the labels are its own
    folder = save_finetuned(result, loaded, tmp_path / "tuned", forgetting=forgetting)
    again = load(folder)
    atoms = stiffer[0].to_atoms()
    spread = []
    for level in ["new", *members]:
        atoms.calc = again.calculator(level_of_theory=level)
        spread.append(atoms.get_forces())
    assert np.std(spread, axis=0).max() > 1e-6  # members differ
    stored = stored_probe(again)
    assert len(stored) == len(probe) and (folder / PROBE_FILE).is_file()
    same = forgetting_report(loaded.potential, again.potential, stored)
    for old, new in zip(forgetting.rows, same.rows, strict=True):
        assert new.after["forces"] == pytest.approx(old.after["forces"], rel=1e-3, abs=1e-5)


def test_refit_of_a_new_head_forgets_nothing_of_the_old(loaded, stiffer):
    few = [replace(s, level_of_theory="new") for s in stiffer[:8]]
    result = finetune(loaded, Target("new", few, [], [], SOURCE), FineTuneConfig(strategy="refit"))
    rows = forgetting_report(loaded.potential, result.potential, probe_of(loaded)).rows
    assert all(row.after == row.before for row in rows)


def test_rule_takes_the_refit_for_few_structures_and_all_parameters_for_more(loaded, stiffer):
    for number, expected in ((4, "refit"), (10, "full")):
        few = stiffer[:number]
        result = finetune(
            loaded, Target("EMT", few, [], [], SOURCE), FineTuneConfig(gradient=SHORT)
        )
        assert result.strategy == expected


@pytest.mark.parametrize(("many", "steps"), [(10, 3), (11, 2)])
def test_steps_go_by_all_structures_held_out_ones_too(loaded, stiffer, monkeypatch, many, steps):
    monkeypatch.setattr(gradient_config, "MANY_STRUCTURES", many)
    monkeypatch.setattr(gradient_config, "STEPS_FOR_FEW", 2)
    monkeypatch.setattr(gradient_config, "STEPS_FOR_MANY", 3)
    target = Target("EMT", stiffer[:8], stiffer[8:10], [], SOURCE)
    assert finetune(loaded, target, FineTuneConfig(strategy="full")).gradient.steps == steps


def test_all_structures_are_learned_from_once_held_out_ones_have_agreed(
    loaded, stiffer, monkeypatch
):
    """A second training goes on from the first, with all structures, half as long."""
    calls, errors = [], []

    train = GradientStrategy.train

    def counted(self, potential, structures, held_out, config, **options):
        start = torch.cat([p.detach().flatten() for p in potential.parameters()])
        report = train(self, potential, structures, held_out, config, **options)
        end = torch.cat([p.detach().flatten() for p in potential.parameters()])
        calls.append(
            (len(structures), held_out is not None, config.max_steps, report.best_step, start, end)
        )
        errors.append(step("", potential, target.valid).force_mae)
        return report

    monkeypatch.setattr(GradientStrategy, "train", counted)
    learned = [s for k, s in enumerate(stiffer[:10]) if k not in (1, 7)]
    target = Target(
        "EMT", learned, [stiffer[1], stiffer[7]], [], SOURCE
    )  # nickel and silver are in both
    result = finetune(loaded, target, FineTuneConfig(strategy="full", gradient=GENTLE))
    (first, again) = calls
    assert first[:2] == (8, True) and again[:2] == (10, False) and 2 * again[2] == first[3]
    assert torch.equal(first[5], again[4])
    # without a test split the errors are those on structures that had not been learned from
    assert result.stages["full"].errors.force_mae == pytest.approx(errors[0], rel=1e-6) != errors[1]
    assert result.held_out_scores[1] < result.held_out_scores[0]


def test_gradient_may_start_from_the_refit(loaded, stiffer):
    target = Target("EMT", stiffer[:8], stiffer[8:12], [], SOURCE)
    result = finetune(
        loaded, target, FineTuneConfig(strategy="full", start="refit", gradient=SHORT)
    )
    assert list(result.stages)[:4] == ["pretrained", "step0", "refit", "full"]
    full, refit = result.stages["full"].errors, result.stages["refit"].errors
    assert full.force_mae <= refit.force_mae * (1 + 1e-6)


def test_an_undone_training_shows_the_errors_of_step_0(loaded, stiffer):
    """The refit after it has a row of its own, and is not taken for what the training did."""
    target = Target("EMT", stiffer[:8], stiffer[8:12], [], SOURCE)
    wild = GradientConfig(max_steps=2, learning_rate=50.0, clip_norm=1e3)
    result = finetune(loaded, target, FineTuneConfig(strategy="full", gradient=wild))

    stages = result.stages
    assert list(stages) == ["pretrained", "step0", "full", "final refit"]
    assert stages["full"].kept == 0.0
    for name in ("force_mae", "energy_mae_per_atom"):
        step0 = getattr(stages["step0"].errors, name)
        undone = getattr(stages["full"].errors, name)
        final = getattr(result.final.errors, name)
        # set-up comes between them, and may have lowered the errors a little
        assert undone == pytest.approx(step0, rel=0.02)
        assert final <= undone * (1 + 1e-6)
    assert result.final is stages["final refit"]


@pytest.mark.parametrize("strategy", ["full", "lora", "readout"])
@pytest.mark.parametrize("num_held_out", [0, 3])
def test_a_training_that_explodes_is_an_error(loaded, stiffer, strategy, num_held_out):
    few = [replace(s, level_of_theory="new") for s in stiffer[:7]]
    target = Target("new", few[num_held_out:], few[:num_held_out], [], SOURCE)
    gradient = GradientConfig(max_steps=4, evaluate_every=2, learning_rate=1e30)
    config = FineTuneConfig(strategy=strategy, gradient=gradient)
    with pytest.raises(TrainingError, match=r"no longer finite.*lower gradient\.learning_rate"):
        finetune(loaded, target, config)


def test_a_second_training_that_explodes_leaves_the_result_of_the_first(single, stiffer):
    calls = []

    def first_only(potential, train, held_out, config, **options):
        calls.append(held_out)
        if held_out is None:
            raise TrainingError("the weights are no longer finite")
        return GradientReport(steps=8, best_step=8, seconds=0.0, interrupted=False)

    strategy = STRATEGIES["full"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy, "train", first_only)
        model = LoadedModel(single, ModelRecord(name="m", elements={"EMT": ["Cu"]}), "m")
        few = [replace(s, level_of_theory="EMT") for s in stiffer[:10]]
        target = Target("EMT", few[:7], few[7:], [], SOURCE)
        run = FineTuning(model, target, FineTuneConfig(strategy="full"), quiet=True)
        run.held_out = HeldOut(run.potential, target.valid)
        learned = strategy.learn(run)
        report, learned_from = strategy._with_held_out(run, learned.gradient)
    assert len(calls) == 2 and learned.kept == 1.0
    assert report is learned.gradient and learned_from is target.train
