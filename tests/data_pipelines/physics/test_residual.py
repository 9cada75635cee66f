"""Data sets of labels minus physics: what they hold, what they state, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import fcc111

from evenfield.core.errors import MissingPackageError
from evenfield.core.seals import sealed
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.corpus.config import CorpusConfig
from evenfield.data_pipelines.corpus.corpus import build_corpus
from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.errors import PhysicsError
from evenfield.data_pipelines.physics.residual import physics_of
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import BadRecordError

from physics_beside import LEVEL, SALT, label_salt, salt, write_salts


pytest.importorskip("torchpme")


def config(physics: dict[str, Any] | None = SALT, **settings: Any) -> ConvertConfig:
    return ConvertConfig.model_validate(
        {"level_of_theory": LEVEL, "physics": physics, "trust_units": True, **settings}
    )


def by_id(folder: Path) -> dict[str, Any]:
    """All structures of a data set."""
    info = read_info(folder)
    splits = [split for split, count in info["num_structures"].items() if count]
    return {one.structure_id: one for split in splits for one in iter_structures(folder, split)}


@pytest.fixture(scope="module")
def salts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the whole."""
    folder = tmp_path_factory.mktemp("salts")
    return write_salts(folder / "salts.extxyz", 12, PhysicsConfig.model_validate(SALT))


@pytest.fixture(scope="module")
def residual(salts: Path) -> Path:
    folder = salts.parent / "residual"
    convert(salts, folder, config(), workers=1)
    return folder


def test_labels_are_what_physics_leaves(salts: Path, residual: Path) -> None:
    """The short-ranged part alone, for energy, forces and stress."""
    found = by_id(residual)
    assert len(found) == 12
    for seed in range(12):
        expected = label_salt(salt(seed), None)
        left = found[f"salts-{seed}"]
        assert left.energy == pytest.approx(expected.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(left.forces, expected.get_forces(), atol=1e-5)
        np.testing.assert_allclose(left.stress, expected.get_stress(voigt=False), atol=1e-6)


def test_the_data_set_states_its_physics(residual: Path) -> None:
    info = read_info(residual)
    stated = physics_of(info, residual)
    assert stated == PhysicsConfig.model_validate(SALT)
    assert info["physics"]["sha256"] == stated.sha256
    assert Collection([str(residual)]).physics == stated


def test_without_physics_nothing_is_stated(salts: Path, tmp_path: Path) -> None:
    info = convert(salts, tmp_path / "plain", config(None), workers=1)
    assert info is not None
    assert "physics" not in info and "physics" not in info["source"]["config"]
    assert Collection([str(tmp_path / "plain")]).physics is None


def test_other_numbers_under_the_same_hash_are_refused(residual: Path) -> None:
    info = read_info(residual)
    info["physics"]["config"]["coulomb"]["width"] = 0.6
    with pytest.raises(PhysicsError, match=r"physics that this version .* does not know"):
        physics_of(sealed(info), residual)


def test_a_finished_conversion_is_one_of_the_same_physics(salts: Path, residual: Path) -> None:
    before = (residual / "dataset_info.json").stat().st_mtime_ns
    convert(salts, residual, config(), workers=1)
    assert (residual / "dataset_info.json").stat().st_mtime_ns == before
    with pytest.raises(Exception, match="--overwrite"):
        convert(salts, residual, config(None), workers=1)


def test_data_sets_that_disagree_are_named(salts: Path, residual: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    convert(salts, plain, config(None), workers=1)
    with pytest.raises(PhysicsError) as caught:
        Collection([str(residual), str(plain)])
    assert "plain: has labels minus no physics, and" in str(caught.value)
    assert f"{residual} minus fixed charges" in str(caught.value)
    assert "convert both sources with the same settings of physics" in str(caught.value)


def test_sources_of_a_corpus_have_one_physics(salts: Path, tmp_path: Path) -> None:
    source = {"files": str(salts), "level_of_theory": LEVEL, "licence": "CC0-1.0"}
    sources = {"one": source | {"physics": SALT}, "two": source}
    corpus = CorpusConfig.model_validate({"name": "salts", "sources": sources})
    with pytest.raises(PhysicsError, match="source two has other settings of physics than one"):
        build_corpus(corpus, tmp_path / "corpus", workers=1)


def test_what_physics_does_not_fit_is_a_bad_record(tmp_path: Path) -> None:
    """It names the record, and can be left out like any other."""
    slab = fcc111("Na", (1, 1, 2), a=5.0, vacuum=5.0)
    slab.info = {"energy": 1.0}
    frames = [label_salt(salt(seed), None) for seed in range(6)] + [slab]
    ase.io.write(tmp_path / "mixed.extxyz", frames)
    with pytest.raises(BadRecordError, match="record 6 is periodic in some directions only"):
        convert(tmp_path / "mixed.extxyz", tmp_path / "refused", config(), workers=1)
    info = convert(tmp_path / "mixed.extxyz", tmp_path / "kept", config(skip_bad=True), workers=1)
    assert info is not None
    assert info["records"]["rejected"] == 1 and info["records"]["kept"] == 6


def test_elements_that_are_left_out_need_no_charge(tmp_path: Path) -> None:
    other = salt(7)
    other.numbers[0] = 19
    frames = [label_salt(atoms, None) for atoms in [*map(salt, range(6)), other]]
    ase.io.write(tmp_path / "mixed.extxyz", frames)
    with pytest.raises(BadRecordError, match="has K, for which"):
        convert(tmp_path / "mixed.extxyz", tmp_path / "refused", config(), workers=1)
    settings = config(without_elements=["K"])
    info = convert(tmp_path / "mixed.extxyz", tmp_path / "kept", settings, workers=1)
    assert info is not None and info["records"]["filtered"] == 1


def test_a_stated_net_charge_must_be_that_of_the_physics(tmp_path: Path) -> None:
    ion = salt(0)
    ion.pbc = False
    ion.info |= {"charge": 1, "energy": 0.5}
    ase.io.write(tmp_path / "ion.extxyz", ion)
    equilibrated = {
        "coulomb": {
            "electronegativity": {"Na": 2.8, "Cl": 8.3},
            "hardness": {"Na": 4.6, "Cl": 9.8},
        }
    }
    with pytest.raises(BadRecordError, match=r"net charge 1, .* coulomb\.net_charge=0"):
        convert(tmp_path / "ion.extxyz", tmp_path / "out", config(equilibrated), workers=1)


@pytest.mark.parametrize(
    ("physics", "module", "package"),
    [
        (SALT, "torchpme", "torch-pme"),
        ({"dispersion": {"functional": "pbe"}}, "torch_dftd.functions", "torch-dftd"),
    ],
)
def test_a_missing_package_is_told_before_any_work(
    physics: dict[str, Any],
    module: str,
    package: str,
    salts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    for name in _loaded(module):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"{package} is not .*evenfield\[physics\]"):
        convert(salts, tmp_path / "out", config(physics), workers=1)
    assert not (tmp_path / "out").exists()


def _loaded(module: str) -> Sequence[str]:
    """The module and all that is inside of it."""
    import sys

    inside = [name for name in sys.modules if name.startswith(f"{module}.")]
    return [module, *inside]


def test_labels_read_back_are_sealed(residual: Path) -> None:
    """A change of the stated physics breaks the seal of dataset_info.json."""
    content = json.loads((residual / "dataset_info.json").read_text())
    content["physics"]["config"]["coulomb"]["charges"]["Na"] = 0.7
    assert content["checksum"] != sealed(content)["checksum"]
