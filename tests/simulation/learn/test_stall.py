"""When the refit stalls: the rule by hand, and a training that has to be better to be taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.safety.uncertainty import TrainedFold, observe, uncertainty_of_folds
from evenfield.finetune.target import Target
from evenfield.model_zoo.engines.calculator import EvenfieldCalculator
from evenfield.model_zoo.hub.load import LoadedModel, load
from evenfield.model_zoo.package.record import TrainingData
from evenfield.model_zoo.uncertainty.record import LevelUncertainty
from evenfield.pretrain.errors import TrainingError
from evenfield.simulation.learn import fit, stall, store
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.stall import stall_of, train


def settings(**changes: Any) -> LearnConfig:
    changes = {"oracle": "EMT", "when_stalled": "full", "stall_rounds": 2, **changes}
    return LearnConfig.model_validate(changes)


def rounds_of(*errors: float | None, learned: dict[int, dict[str, Any]] | None = None) -> list[Any]:
    """Contents of round.json with the errors that matter here."""
    made = []
    for number, error in enumerate(errors):
        before = None if error is None else {"force_rmse": error}
        of_round = {"strategy": "refit", "compared": None} | (learned or {}).get(number, {})
        made.append({"round": number, "before": before, "learned": of_round})
    return made


def test_the_rule() -> None:
    """By hand: two rounds, one after the other, that are not below the lowest before them."""
    config = settings()

    def stalls(*errors: float | None, **learned: Any) -> bool:
        *earlier, last = rounds_of(*errors, **learned)
        return stall_of(earlier, last["before"], config) is not None

    assert not stalls(None, 0.5, 0.4)
    assert not stalls(None, 0.5, 0.6)
    assert stalls(None, 0.5, 0.6, 0.5)
    assert not stalls(None, 0.5, 0.6, 0.49)
    # one good round among the last
    assert not stalls(None, 0.5, 0.4, 0.45)
    assert stalls(None, 0.5, 0.4, 0.45, 0.41)
    # a round whose labels all failed says nothing
    assert stalls(None, 0.5, 0.6, None, 0.5)
    never = settings(when_stalled="none")
    assert stall_of(rounds_of(None, 0.5, 0.6), {"force_rmse": 0.7}, never) is None

    # a lost comparison is repeated, and a won one begins the count anew
    lost = {3: {"strategy": "full", "compared": {"ratio": 0.5}}}
    assert stalls(None, 0.5, 0.6, 0.5, 0.1, learned=lost)
    won = {3: {"strategy": "refit", "compared": {"ratio": 1.5}}}
    assert not stalls(None, 0.5, 0.6, 0.5, 0.6, learned=won)
    assert not stalls(None, 0.5, 0.6, 0.5, 0.6, 0.6, learned=won)
    assert stalls(None, 0.5, 0.6, 0.5, 0.6, 0.6, 0.7, learned=won)


@pytest.fixture(scope="module")
def labelled() -> list[Structure]:
    """Alloys of gold and copper with labels by EMT."""
    made = []
    for seed in range(8):
        atoms = bulk("Cu", cubic=True)
        rng = np.random.default_rng(seed)
        atoms.symbols[: seed % 4] = "Au"
        atoms.set_cell(atoms.cell * (1 + 0.015 * (seed % 4)), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.12, (4, 3))
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(voigt=False),
        }
        made.append(
            Structure.from_atoms(atoms, "EMT", f"{seed}", group=f"{seed}", split="train", **results)
        )
    return made


def target_of(structures: list[Structure]) -> Target:
    source = TrainingData(name="EMT", sha256="", licence="-", description="", num_structures=8)
    return Target("EMT", structures, [], [], source)


def test_a_training_is_taken_where_it_is_better_on_what_it_has_not_learned(
    model: LoadedModel,
    labelled: list[Structure],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was compared, and the radii, by the calculators of the models that left labels out."""
    monkeypatch.setattr(stall, "NUM_PARTS", 2)
    kept: list[TrainedFold] = []

    def remember(*what: Any) -> LevelUncertainty:
        kept.extend(what[3])
        return uncertainty_of_folds(*what)

    monkeypatch.setattr(stall, "uncertainty_of_folds", remember)
    config = settings(gradient={"max_steps": 60, "learning_rate": 0.02})
    out = tmp_path / "model"
    facts = tmp_path / "learned.json"
    fit.fit(model, labelled, "0", out, config, facts, "it was time")
    told = store.read(facts)
    assert told["strategy"] == "full" and told["why"] == "it was time"
    compared = told["compared"]
    of_full, of_refit = compared["errors"]["full"], compared["errors"]["refit"]
    ratios = [of_full[name] / of_refit[name] for name in of_full]
    assert compared["ratio"] == pytest.approx(np.mean(ratios)) and compared["ratio"] <= 0.95

    # each label was left out once, and not learned then
    assert sorted(one.structure_id for fold in kept for one in fold.left_out) == sorted(
        one.structure_id for one in labelled
    )
    error: list[np.ndarray] = []
    record = model.record.model_copy(update={"elements": {"EMT": ["Au", "Cu"]}})
    for fold in kept:
        learned = {one.structure_id for one in fold.learned}
        assert not learned & {one.structure_id for one in fold.left_out}
        calculator = EvenfieldCalculator(fold.potential, record, level_of_theory="EMT")
        for one in fold.left_out:
            atoms = one.to_atoms()
            atoms.calc = calculator
            error.append(atoms.get_forces() - one.labels["forces"])
    found = float(np.abs(np.concatenate(error)).mean())
    assert found == pytest.approx(of_full["force_mae"], rel=1e-4)

    # the radii are those of such errors, and what was learned lies within them: nine in ten of 32
    # atoms, up to the chance of eight structures
    trained = load(out)
    own = trained.uncertainties["EMT"]
    assert own.calibrated_on == "structures left out of the training"
    assert own.force_scores[-1].number == sum(len(one) for one in labelled)
    seen = observe(trained.potential, own, labelled)
    radius = own.force_quantiles(0.9)[own.group_of(seen.numbers)]
    radius = radius * own.spread(seen.ingredients, seen.numbers)
    assert (seen.error <= radius).mean() >= 0.8
    assert np.abs(seen.force_error).mean() < found
    assert trained.record.training["finetune"]["strategy"] == "full"


def test_without_a_gain_the_refit_stays(
    model: LoadedModel,
    labelled: list[Structure],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says why: no gain, a training that failed, too few labels. A signal ends it all."""
    monkeypatch.setattr(stall, "NUM_PARTS", 2)
    config = settings(gradient={"max_steps": 1})
    facts = tmp_path / "learned.json"
    fit.fit(model, labelled, "0", tmp_path / "stalled", config, facts, "it was time")
    told = store.read(facts)
    assert told["strategy"] == "refit" and told["compared"]["ratio"] > 0.95
    fit.fit(model, labelled, "0", tmp_path / "plain", config, facts)
    assert store.read(facts) == {"strategy": "refit", "why": None, "compared": None}
    weights = [load(tmp_path / name).potential.state_dict() for name in ("stalled", "plain")]
    assert all(bool((one == weights[1][name]).all()) for name, one in weights[0].items())

    assert train(model, target_of(labelled[:7]), config) == (None, None)

    def fails(*_: Any) -> Any:
        raise TrainingError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(stall, "_by_gradients", fails)
        trained, compared = train(model, target_of(labelled), config)
    assert trained is None and compared == {"failed": "the loss is not finite"}

    # Ctrl-C leaves a training whose weights depend on the moment
    whole = stall.finetune

    def interrupted(*what: Any) -> Any:
        result = whole(*what)
        if result.gradient is not None:
            result.gradient = replace(result.gradient, interrupted=True)
        return result

    monkeypatch.setattr(stall, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(model, labelled, "0", tmp_path / "never", config, facts, "it was time")
    assert not (tmp_path / "never").exists()
