"""Probe set and posterior of a pretrained model, made from its data; the weights do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers, chemical_symbols

from evenfield import model_zoo
from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.finetune.closed_form.posterior import NoPosteriorError, load_posterior
from evenfield.finetune.safety import trust
from evenfield.finetune.safety.forgetting import probe_of, stored_probe
from evenfield.finetune.safety.trust import attach_trust
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.package.domain_record import DOMAIN
from evenfield.model_zoo.package.record import TrainingData


SMALL = PotentialConfig(
    channels=4,
    l_max=1,
    cutoff=4.0,
    readout_size=8,
    radial_hidden=8,
    levels_of_theory=["EMT", "EMT-scaled"],
)


@pytest.fixture
def folder(tmp_path: Path, data_set: Path) -> Path:
    """An untrained model of the data's levels and elements."""
    metals = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
    record = ModelRecord(name="metals", elements={"EMT": metals, "EMT-scaled": metals})
    return model_zoo.save_model(tmp_path / "model", Potential(SMALL), record)


def test_both_stand_beside_the_same_weights(folder: Path, data_set: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    names = ["posterior.safetensors", "probe.extxyz", "uncertainty.safetensors"]
    assert attach_trust(folder, data_set) == names
    assert (folder / "model.safetensors").read_bytes() == weights
    model = model_zoo.load(folder)
    assert {"posterior.safetensors", "probe.extxyz"} <= model.attachments.keys()

    probe = stored_probe(model)
    assert {s.group for s in probe} == {"pretraining samples", "pairs", "stretched crystals"}
    samples = [s for s in probe if s.group == "pretraining samples"]
    known = {s.structure_id: s.energy for s in iter_structures(data_set, "train")}
    assert all(s.energy == pytest.approx(known[s.structure_id], abs=1e-6) for s in samples)

    posterior = load_posterior(folder)
    assert (posterior.level_of_theory, posterior.size, len(posterior.new_elements)) == ("EMT", 8, 0)
    present = {
        z
        for s in iter_structures(data_set, "train")
        if s.level_of_theory == "EMT"
        for z in s.atomic_numbers
    }
    assert set(posterior.elements.tolist()) == present
    np.linalg.cholesky(posterior.covariance)
    copper = np.full(4, atomic_numbers["Cu"])
    near, far = (posterior.energy_variance(np.full(8, value), copper) for value in (1.0, 100.0))
    assert 0 < near < far


def test_a_model_without_a_domain_gets_that_of_its_own_data(folder: Path, data_set: Path) -> None:
    """A pretraining on data of an earlier version left it out."""
    info = read_info(data_set)
    potential, record = model_zoo.load_model(folder)
    own = TrainingData.of_data_set(info, info["num_structures"]["train"])
    known = record.model_copy(update={"training_data": [own]})
    model_zoo.save_model(folder, potential, known)
    assert DOMAIN in attach_trust(folder, data_set)
    found = model_zoo.load(folder).domains
    for level, domain in Collection([str(data_set)]).domains().items():
        # shards round positions to float32
        assert found[level].pairs == pytest.approx(domain.pairs, abs=0.0101)
        assert found[level].model_copy(update={"pairs": domain.pairs}) == domain

    # a model that has learned from other data too, or from another split, would get a part
    other = TrainingData(name="more", sha256="1" * 64, licence="MIT", num_structures=1)
    fewer = own.model_copy(update={"num_structures": own.num_structures - 1})
    for data in ([own, other], [fewer]):
        record = record.model_copy(update={"training_data": data})
        model_zoo.save_model(folder, potential, record)
        assert DOMAIN not in attach_trust(folder, data_set)


def test_files_that_only_lie_next_to_a_model_are_not_read(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.extxyz"
    secret.write_text("1\n\nAu 0 0 0\n")
    (folder / "probe.extxyz").symlink_to(secret)
    (folder / "posterior.safetensors").write_bytes(b"not listed")

    assert stored_probe(model_zoo.load(folder)) == []
    with pytest.raises(NoPosteriorError, match="has no posterior"):
        load_posterior(folder)


def test_elements_whose_lattice_ase_knows_only_in_part_have_no_crystals(tmp_path: Path) -> None:
    """Selenium and tellurium: they must not end a fine-tuning."""
    config = PotentialConfig(
        channels=4, l_max=1, readout_size=8, radial_hidden=8, levels_of_theory=["PBE"]
    )
    record = ModelRecord(name="two", elements={"PBE": ["Se", "Cu"]})
    model = model_zoo.load(model_zoo.save_model(tmp_path / "model", Potential(config), record))
    crystals = [s for s in probe_of(model) if s.group == "stretched crystals"]
    assert {int(s.atomic_numbers[0]) for s in crystals} == {29}


@pytest.mark.parametrize("name", ["probe.extxyz", "posterior.safetensors"])
def test_a_file_of_the_user_is_not_replaced(
    name: str, folder: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, without a word; now it is refused before the work."""
    monkeypatch.setattr(trust, "posterior_of", None)
    (folder / name).write_text("mine")
    with pytest.raises(DestinationError, match="no file of the model") as told:
        attach_trust(folder, data_set, overwrite=True)
    assert told.value.file == str(folder / name)
    assert (folder / name).read_text() == "mine"


def test_data_without_the_level_are_refused(folder: Path, data_set: Path) -> None:
    potential, record = model_zoo.load_model(folder)
    other = Potential(potential.config.model_copy(update={"levels_of_theory": ["PBE"]}))
    model_zoo.save_model(folder, other, record.model_copy(update={"elements": {"PBE": ["Cu"]}}))
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(EvenfieldError, match="has no training structure at PBE"):
        attach_trust(folder, data_set)
    assert (folder / "manifest.json").read_bytes() == before


def test_elements_that_were_not_learned_are_left_out_and_named(
    tmp_path: Path, data_set: Path
) -> None:
    learned = {"EMT": ["Al", "Ni", "Cu", "Pd", "Ag", "Pt"], "EMT-scaled": ["Ni", "Cu", "Pd"]}
    data = TrainingData(name="others", sha256="0" * 64, licence="CC0-1.0", num_structures=9)
    record = ModelRecord(name="metals", elements=learned, training_data=[data])
    folder = model_zoo.save_model(tmp_path / "model", Potential(SMALL), record)

    told: list[str] = []
    attach_trust(folder, data_set, say=told.append)
    assert told[0].startswith(f"warning: {data_set} is not what metals says")
    assert "others" in told[0]
    without_gold = [line for line in told if line.startswith("left out:") and "'EMT'" in line]
    assert without_gold[0].endswith("with Au, not learned at this level")

    model = model_zoo.load(folder)
    for structure in stored_probe(model):
        known = set(learned[structure.level_of_theory])
        assert {chemical_symbols[number] for number in structure.elements} <= known
    assert atomic_numbers["Au"] not in load_posterior(folder).elements


def test_the_data_of_the_training_need_no_note(folder: Path, data_set: Path) -> None:
    told: list[str] = []
    attach_trust(folder, data_set, say=told.append)
    assert not told
