"""Every network besides the default one, through the whole pipeline.

Pretrained, fine-tuned by every strategy, published, loaded, compiled and exported: with nothing
but its folder and its line in the registry.
"""

from __future__ import annotations

import copy
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from evenfield import model_zoo
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.finetune.config import FineTuneConfig
from evenfield.finetune.run import finetune
from evenfield.finetune.save import save_finetuned
from evenfield.finetune.strategies import STRATEGIES
from evenfield.model_zoo.compile.compiled import compile_for_inference
from evenfield.model_zoo.cost.cost import per_atom_and_edge
from evenfield.model_zoo.element_table import element_vectors
from evenfield.model_zoo.network.architectures import ARCHITECTURES, DEFAULT_ARCHITECTURE
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain
from evenfield.testing.structures import batch_of


NEW = "Pt"
OTHERS = [tag for tag in ARCHITECTURES if tag != DEFAULT_ARCHITECTURE]
GRADIENT = {"max_steps": 4, "evaluate_every": 2}


@pytest.fixture(scope="module")
def sets(emt_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The EMT part of the file without platinum, to pretrain on, and with it, to fine-tune on."""
    folder = tmp_path_factory.mktemp("sets")
    frames = [atoms for atoms in ase.io.read(emt_file, ":") if atoms.info["level"] == "EMT"]
    for index, atoms in enumerate(frames):
        atoms.info["split"] = ("test", "train", "train")[index % 3]
    ase.io.write(folder / "emt.extxyz", frames)
    columns = {"level_of_theory": "level", "split": "split"}
    for name, choice in (("base", "without_elements"), ("platinum", "with_elements")):
        config = ConvertConfig(columns=columns, licence="CC0-1.0", **{choice: [NEW]})
        convert(folder / "emt.extxyz", folder / name, config)
    return {name: folder / name for name in ("base", "platinum")}


@pytest.fixture(scope="module", params=OTHERS)
def model(
    request: pytest.FixtureRequest, sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> model_zoo.LoadedModel:
    """A small model, pretrained for some steps and loaded from its folder."""
    config = PretrainConfig(
        data=str(sets["base"]),
        out=str(tmp_path_factory.mktemp("run") / "metals"),
        licence="CC0-1.0",
        max_steps=40,
        evaluate_every=1000,
        model={"architecture": request.param, "channels": 8, "readout_size": 8, "cutoff": 4.0},
        stream={"edge_budget": 1500},
    )
    folder = pretrain(config, quiet=True)
    assert folder is not None
    return model_zoo.load(folder)


def rattled_copper() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    return atoms


def forces(calculator: object) -> np.ndarray:
    atoms = rattled_copper()
    atoms.calc = calculator
    return atoms.get_forces()


def test_it_is_what_was_asked_for_and_has_learned(model: model_zoo.LoadedModel) -> None:
    architecture = model.potential.config.network.architecture
    assert architecture in OTHERS
    assert model.record.training["config"]["model"]["architecture"] == architecture
    assert np.abs(forces(model.calculator())).max() > 0.05


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_fine_tunes_it(
    model: model_zoo.LoadedModel, sets: dict[str, Path], tmp_path: Path, strategy: str
) -> None:
    config = FineTuneConfig(
        strategy=strategy, num_structures=8, trust_units=True, gradient=GRADIENT
    )
    tuned = finetune(model, sets["platinum"], config)
    step0 = tuned.stages["step0"].errors
    # eight structures and four steps: a sane result, not a good one
    assert tuned.stages[strategy].errors.force_mae < 1.5 * step0.force_mae
    saved = model_zoo.load(save_finetuned(tuned, model, tmp_path / "tuned"))
    assert NEW in saved.record.elements["EMT"]
    assert saved.potential.config.network == model.potential.config.network


def test_published_and_loaded_it_predicts_the_same(
    model: model_zoo.LoadedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "metals"
    model_zoo.save_model(folder, model.potential, model.record)
    reference = model_zoo.publish(folder, "me/metals", tmp_path / "hub", allow_failed=True)
    published = model_zoo.load(reference, tmp_path / "hub")
    np.testing.assert_array_equal(forces(published.calculator()), forces(model.calculator()))
    assert published.potential.config.network.architecture in (folder / "README.md").read_text()


def test_traced_for_the_compiler_it_predicts_the_same(
    model: model_zoo.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the traced graph itself, so that no C++ compiler is needed
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    compiled = copy.deepcopy(model.potential)
    function = compile_for_inference(compiled)
    batch = batch_of([rattled_copper()], compiled.cutoff, torch.float32)
    with torch.no_grad():
        found = compiled(batch)
        expected = model.potential(batch)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-4, atol=1e-5)
    assert not function.failed and function.tile_size is not None


def test_exported_it_predicts_the_same(model: model_zoo.LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("metatomic", reason="comes with the extra `metatomic`")
    path = model_zoo.export_metatomic(model, tmp_path / "metals.pt")
    from metatomic_ase import MetatomicCalculator

    expected = forces(model.calculator(dtype="float64"))
    found = forces(MetatomicCalculator(path, check_consistency=True))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_its_cost_is_counted_and_its_elements_have_vectors(model: model_zoo.LoadedModel) -> None:
    potential = model.potential
    atom, edge = per_atom_and_edge(potential.config, torch.float32, training=True)
    assert atom.flops > 0
    assert edge.memory > 0
    assert element_vectors(potential).shape[0] == 119
    assert potential.backbone.receptive_field >= potential.cutoff
    # counted without building it, which is what keeps a bad model folder from filling the memory
    num_weights = sum(tensor.numel() for tensor in potential.state_dict().values())
    assert potential.config.num_weights == num_weights
