"""A corpus: several sources in one data set, with their licences, without leaks between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.core.settings import SettingsError, load_settings, recipes_of
from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert.finish import ConversionError
from evenfield.data_pipelines.convert.splits import split_of
from evenfield.data_pipelines.corpus.config import CorpusConfig
from evenfield.data_pipelines.corpus.corpus import build_corpus
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import SPLITS, BadRecordError
from evenfield.model_zoo.package.record import TrainingData


def labelled(atoms: Atoms, level: str, **info: str) -> Atoms:
    """With labels by EMT in REF_* columns, as the shipped recipe reads them."""
    made = atoms.copy()
    atoms = atoms.copy()
    atoms.calc = EMT()
    made.info |= {"REF_energy": atoms.get_potential_energy(), "level_group": level, **info}
    made.arrays["REF_forces"] = atoms.get_forces()
    return made


def rattled(symbols: str, number: int, level: str, seed: int = 0, **info: str) -> list[Atoms]:
    """Crystals of which no two are alike."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(number):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols = symbols
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        frames.append(labelled(atoms, level, group=f"{symbols}-{k}", **info))
    return frames


def crystal(symbol: str, level: str, a: float, **info: str) -> Atoms:
    return labelled(bulk(symbol, "fcc", a=a), level, **info)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, at two levels of theory."""
    made = tmp_path / "downloads"
    made.mkdir()
    ase.io.write(made / "one.extxyz", rattled("CuCuAuAu", 20, "PBE"))
    ase.io.write(made / "two.extxyz", rattled("NiNiPdPd", 12, "PBEsol", seed=1))
    return made


def recipe(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "name": "both",
        "description": "two sets",
        "level_details": {"PBE": "PBE, made up"},
        "sources": {
            "first": {
                "files": "one.extxyz",
                "reference_columns": True,
                "trust_units": True,
                "licence": "MIT AND CC-BY-4.0",
                "citation": "A et al.,\n 2020",
                "url": "https://example.org/one",
                "known_faults": "|F| is large",
            },
            "second": {
                "files": "two.extxyz",
                "reference_columns": True,
                "trust_units": True,
                "licence": "bsd-3-clause",
            },
        },
    }
    return tree | changes


def config(**changes: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(recipe(**changes))


def build(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    info = build_corpus(config(**changes), out, folder=folder, workers=1)
    assert info is not None
    return info


def group_in(split: str) -> str:
    """A group that the hash puts into a split."""
    source = config().sources["first"]
    return next(f"g{k}" for k in range(99) if split_of(f"g{k}", source) == split)


def side_of(out: Path) -> dict[str, str]:
    """The split of each structure, by its id."""
    sides = {}
    for split in SPLITS:
        if list(out.glob(f"{split}-*.parquet")):
            sides |= {one.structure_id: split for one in iter_structures(out, split)}
    return sides


def test_two_sources_become_one_data_set(folder, tmp_path):
    info = build(folder, tmp_path / "out")

    assert sum(info["num_structures"].values()) == 32
    assert info["levels_of_theory"] == ["PBE", "PBEsol"]
    assert info["publishable"] is True
    assert info["licence"] == "BSD-3-Clause AND CC-BY-4.0 AND MIT"
    first, second = info["sources"]
    assert sum(first["levels_of_theory"]["PBE"].values()) == 20
    assert sum(second["levels_of_theory"]["PBEsol"].values()) == 12
    assert (first["attribution"], second["attribution"]) == (True, False)
    assert first["sha256"] != second["sha256"]
    # ids cannot collide, whatever the files are called
    assert {name.partition("/")[0] for name in side_of(tmp_path / "out")} == {"first", "second"}

    card = (tmp_path / "out" / "data_card.md").read_text()
    assert "| PBE | PBE, made up | " in card
    assert (
        "| [first](https://example.org/one) | 20 | PBE | MIT AND CC-BY-4.0 | A et al., 2020 |"
        in card
    )
    assert "- first: A et al., 2020 (MIT AND CC-BY-4.0, https://example.org/one)" in card


def test_labels_that_were_not_read_are_named_by_source(folder, tmp_path):
    """Without a word, a model would be trained on energies alone."""
    frames = ase.io.read(folder / "two.extxyz", ":")
    for atoms in frames:
        atoms.arrays["gradient"] = atoms.arrays.pop("REF_forces")
    ase.io.write(folder / "two.extxyz", frames)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe()))
    words = ["data", "corpus", str(file), str(tmp_path / "out"), "--sources", str(folder)]
    said = CliRunner().invoke(app, words).output
    assert "labels of 20 structures at PBE: energy 20, forces 20, stress 0" in said
    assert "labels of 12 structures at PBEsol: energy 12, forces 0, stress 0" in said
    assert "not read: 'gradient' of 12 structures looks like forces" in said
    assert "sources.second.columns.forces=gradient" in said
    card = (tmp_path / "out" / "data_card.md").read_text()
    assert "- second: not read: 'gradient' of 12 structures looks like forces" in card

    # the setting that it names does read them
    words[3] = str(tmp_path / "again")
    words += ["sources.second.columns.forces=gradient", "sources.second.units.forces=eV/A"]
    said = CliRunner().invoke(app, words).output
    assert "not read" not in said
    assert "labels of 12 structures at PBEsol: energy 12, forces 12" in said


def test_a_source_without_labels_names_its_setting(folder, tmp_path):
    frames = ase.io.read(folder / "two.extxyz", ":")
    for atoms in frames:
        atoms.arrays["gradient"] = atoms.arrays.pop("REF_forces")
        atoms.info.pop("REF_energy")
    ase.io.write(folder / "two.extxyz", frames)
    with pytest.raises(ConversionError, match="none of its 12 structures has a label") as told:
        build(folder, tmp_path / "out")
    assert "sources.second.columns.forces=gradient" in str(told.value)


def test_a_model_carries_the_sources_into_its_record(folder, tmp_path):
    data = TrainingData.of_data_set(build(folder, tmp_path / "out"), 20)

    first, second = data.sources
    assert (first.citation, first.attribution) == ("A et al., 2020", True)
    assert (second.licence, second.levels_of_theory) == ("bsd-3-clause", ["PBEsol"])
    assert first.num_structures + second.num_structures == sum(
        split == "train" for split in side_of(tmp_path / "out").values()
    )
    assert data.unpublishable == []


# --- licences


@pytest.mark.parametrize(
    ("licence", "reason"),
    [
        ("GPL-3.0-only", "licence GPL-3.0-only is not known to allow a published model"),
        ("MIT AND GPL-2.0-only", "licence GPL-2.0-only is not known"),
        ("none stated", "'none stated' is not an SPDX identifier such as MIT"),
        ("not stated", "'not stated' is not an SPDX identifier"),
        ("CC-BY-NC-4.0", "licence CC-BY-NC-4.0 is not known"),
        ("MIT OR GPL-2.0-only", None),
        ("mit and cc0-1.0", None),
    ],
)
def test_a_licence_that_forbids_a_published_model_is_refused(licence, reason):
    sources = recipe()["sources"]
    sources["second"]["licence"] = licence
    if reason is None:
        assert config(sources=sources).refusals() == {}
        return
    with pytest.raises(
        ValueError, match=rf"sources\.second: .*{reason}.*leave it out, or set allow"
    ):
        config(sources=sources)
    allowed = config(sources=sources, allow_unpublishable=True)
    assert list(allowed.refusals()) == ["second"]


def test_a_corpus_with_such_a_licence_says_so(folder, tmp_path):
    sources = recipe()["sources"]
    sources["second"]["licence"] = "GPL-3.0-only"
    info = build(folder, tmp_path / "out", sources=sources, allow_unpublishable=True)

    assert info["publishable"] is False
    card = (tmp_path / "out" / "data_card.md").read_text()
    assert "cannot be published**, because of the licences of second" in card
    assert TrainingData.of_data_set(info, 20).unpublishable == ["second"]


def test_attribution_needs_a_citation():
    sources = recipe()["sources"]
    del sources["first"]["citation"]
    with pytest.raises(ValueError, match=r"MIT AND CC-BY-4\.0 asks for attribution: add citation"):
        config(sources=sources)


# --- leaks


def test_a_material_that_another_source_holds_out_is_held_out(folder, tmp_path):
    """The same crystal at another volume and level of theory, whose group the hash trains on."""
    group = group_in("train")
    stated = [crystal("Ag", "PBE", 4.1, split="test", group="stated")]
    ase.io.write(folder / "one.extxyz", rattled("CuCuAuAu", 20, "PBE", split="train") + stated)
    free = [crystal("Ag", "PBEsol", a, group=group) for a in (4.0, 4.2)]
    others = [crystal("Pt", "PBEsol", a, group="other") for a in (3.9, 4.0)]
    ase.io.write(folder / "two.extxyz", [*free, *others, *rattled("NiNiPdPd", 12, "PBEsol")])

    info = build(folder, tmp_path / "out")

    sides = side_of(tmp_path / "out")
    assert sides["first/one-20"] == "test"
    assert sides["second/two-0"] == sides["second/two-1"] == "test"
    assert sides["second/two-2"] == split_of("other", config().sources["second"])
    shared = info["splits"]["between_sources"]
    assert (shared["materials"], shared["structures"], shared["moved"]) == (1, 3, 2)
    assert (shared["dropped_from_training"], shared["still_on_two_sides"]) == (0, 0)


def test_a_stated_training_structure_that_another_source_holds_out_is_dropped(folder, tmp_path):
    rest = rattled("CuCuAuAu", 20, "PBE", split="train")
    stated = [crystal("Ag", "PBE", 4.1, split="test", group="stated")]
    ase.io.write(folder / "one.extxyz", rest + stated)
    copy = [crystal("Ag", "PBEsol", 4.0, split="train", group="copy")]
    ase.io.write(folder / "two.extxyz", rattled("NiNiPdPd", 6, "PBEsol", split="train") + copy)

    info = build(folder, tmp_path / "out")

    assert "second/two-6" not in side_of(tmp_path / "out")
    assert info["splits"]["between_sources"]["dropped_from_training"] == 1
    assert info["records"] == {"read": 28, "kept": 27, "filtered": 0, "rejected": 1}
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == 6
    assert "held out in another one" in json.loads(line)["reason"]


def test_a_source_with_a_material_on_both_sides_does_not_hold_it_out(folder, tmp_path):
    """As a published trajectory, which is split by time."""
    both = [crystal("Ag", "PBE", a, split=split) for a, split in ((4.0, "train"), (4.1, "test"))]
    ase.io.write(folder / "one.extxyz", rattled("CuCuAuAu", 20, "PBE", split="train") + both)
    group = group_in("test")
    free = [crystal("Ag", "PBEsol", 4.0, group=group)]
    ase.io.write(folder / "two.extxyz", [*free, *rattled("NiNiPdPd", 12, "PBEsol")])

    info = build(folder, tmp_path / "out")

    assert side_of(tmp_path / "out")["second/two-0"] == "train"
    assert info["splits"]["between_sources"]["dropped_from_training"] == 0


def test_isolated_atoms_are_no_shared_material(folder, tmp_path):
    atom = Atoms("Cu")
    ase.io.write(
        folder / "one.extxyz",
        [*rattled("CuCuAuAu", 20, "PBE", split="train"), labelled(atom, "PBE", split="train")],
    )
    ase.io.write(
        folder / "two.extxyz",
        [*rattled("NiNiPdPd", 6, "PBEsol", split="train"), labelled(atom, "PBEsol", split="test")],
    )
    info = build(folder, tmp_path / "out")
    assert info["splits"]["between_sources"]["materials"] == 0
    assert info["records"]["rejected"] == 0


# --- errors, interruptions, the folder


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path):
    sources = recipe()["sources"]
    sources["first"]["licens"] = "MIT"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe(sources=sources)))
    with pytest.raises(
        SettingsError,
        match=r"unknown key 'sources\.first\.licens' \(known here: .*mean sources\.first\.licence",
    ):
        load_settings(CorpusConfig, path)


def test_an_error_names_source_file_and_record(folder, tmp_path):
    frames = ase.io.read(folder / "two.extxyz", ":")
    frames[3].info["REF_energy"] = float("nan")
    ase.io.write(folder / "two.extxyz", frames)
    with pytest.raises(
        BadRecordError,
        match=r"two\.extxyz: record 3 has NaN or infinite energy \(source second\): ",
    ):
        build(folder, tmp_path / "out")


def test_a_missing_file_names_the_source(folder, tmp_path):
    (folder / "two.extxyz").rename(folder / "too.extxyz")
    with pytest.raises(
        Exception, match=r"no such file \(source second\): did you mean .*too\.extxyz\?"
    ):
        build(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_build_continues_with_what_is_missing(folder, tmp_path, monkeypatch):
    build(folder, tmp_path / "whole")
    out = tmp_path / "out"
    stage = conversion.stage
    staged = []

    def stage_one(records, place, index, *arguments, **options):
        if len(staged) == 1:
            raise KeyboardInterrupt
        staged.append(index)
        return stage(records, place, index, *arguments, **options)

    monkeypatch.setattr(conversion, "stage", stage_one)
    with pytest.raises(KeyboardInterrupt):
        build(folder, out)
    assert not (out / "dataset_info.json").exists()
    assert len(list((out / ".parts").glob("*/*.parquet"))) == 1

    continued = []

    def stage_rest(records, place, index, *arguments, **options):
        continued.append(index)
        return stage(records, place, index, *arguments, **options)

    monkeypatch.setattr(conversion, "stage", stage_rest)
    build(folder, out)
    assert (staged, continued) == ([0], [1])
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_a_finished_build_is_left_as_it_is_and_another_needs_overwrite(folder, tmp_path):
    out = tmp_path / "out"
    build(folder, out)
    (out / "notes.txt").write_text("mine")
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    build(folder, out)
    assert times == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    with pytest.raises(DestinationError, match="already exists and holds a data set"):
        build(folder, out, description="another")
    build_corpus(config(description="another"), out, folder=folder, workers=1, overwrite=True)
    assert "another" in (out / "data_card.md").read_text()
    assert (out / "notes.txt").read_text() == "mine"


def test_split_names_say_what_a_source_calls_its_splits(folder, tmp_path):
    frames = rattled("CuCuAuAu", 20, "PBE", split="train_300K")
    for atoms in frames[15:]:
        atoms.info["split"] = "test_dihedral"
    ase.io.write(folder / "one.extxyz", frames)
    with pytest.raises(BadRecordError, match=r"has split 'train_300K'.*split_names\.train_300K="):
        build(folder, tmp_path / "out")

    sources = recipe()["sources"]
    sources["first"]["split_names"] = {"train_300K": "train", "test_dihedral": "test"}
    info = build(folder, tmp_path / "out", sources=sources)
    assert info["sources"][0]["levels_of_theory"]["PBE"] == {"train": 15, "valid": 0, "test": 5}


def test_command(folder, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    words = ["data", "corpus", str(path), str(tmp_path / "out"), "--sources", str(folder)]
    done = CliRunner().invoke(app, [*words, "--workers", "1", "sources.second.licence=MIT"])
    assert done.exit_code == 0, done.output
    assert "32 read = 32 kept" in done.output
    assert "second (MIT): PBEsol 12" in done.output
    assert "data_card.md" in done.output


def test_the_shipped_recipes_allow_a_published_model():
    recipes = sorted(recipes_of(CorpusConfig).glob("*.yaml"))
    assert [path.stem for path in recipes] == ["evenfield-1"]
    for path in recipes:
        shipped = load_settings(CorpusConfig, path)
        assert shipped.refusals() == {}
        assert not shipped.allow_unpublishable
        # names only: where the files are is said by --sources
        assert all(source.files == Path(source.files).name for source in shipped.sources.values())
        assert all(source.citation and source.url for source in shipped.sources.values())
