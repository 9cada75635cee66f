"""Each shipped recipe on a Parquet file with exactly the columns that the data set documents."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase import units
from ase.stress import voigt_6_to_full_3x3_stress
from datasets import Array2D, Dataset, Features, Sequence, Value

from evenfield.core.settings import SettingsError, load_settings, recipes_of
from evenfield.data_pipelines.checks.unit_check import UnitError, check_units
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.sources.read import read_structures
from evenfield.data_pipelines.store.blocks import iter_structures


F64, F32 = pa.float64(), pa.float32()
MATRIX, MATRIX32 = pa.list_(pa.list_(F64)), pa.list_(pa.list_(F32))


def stresses(frames):
    return [voigt_6_to_full_3x3_stress(a.get_stress()) for a in frames]


def write_mptrj(frames, path):
    square = Array2D(shape=(3, 3), dtype="float32")
    rows = Sequence(Sequence(Value("float32"), length=3))
    features = Features(
        {
            "mp_id": Value("string"),
            "numbers": Sequence(Value("uint8")),
            "positions": rows,
            "cell": square,
            "pbc": Sequence(Value("bool"), length=3),
            "energy": Value("float32"),
            "corrected_total_energy": Value("float32"),
            "forces": rows,
            "stress": square,
            "composition": Sequence(Value("uint8"), length=120),
        }
    )
    columns = {
        "mp_id": [f"mp-{k // 12}" for k in range(len(frames))],
        "numbers": [a.numbers for a in frames],
        "positions": [a.positions for a in frames],
        "cell": [a.cell.array for a in frames],
        "pbc": [a.pbc for a in frames],
        "energy": [
            a.get_potential_energy() + 99 for a in frames
        ],  # uncorrected: not the one to be read
        "corrected_total_energy": [a.get_potential_energy() for a in frames],
        "forces": [a.get_forces() for a in frames],
        "stress": stresses(frames),
        "composition": [np.bincount(a.numbers, minlength=120) for a in frames],
    }
    Dataset.from_dict(columns, features=features).to_parquet(str(path))


def write_omat24(frames, path):
    columns = {
        "atomic_numbers": pa.array([a.numbers.tolist() for a in frames], pa.list_(pa.int64())),
        "pos": pa.array([a.positions.tolist() for a in frames], MATRIX32),
        "cell": pa.array(
            [[a.cell.array.tolist()] for a in frames], pa.list_(MATRIX32)
        ),  # (1, 3, 3)
        "natoms": [len(a) for a in frames],
        "tags": [[0] * len(a) for a in frames],
        "fixed": [[0] * len(a) for a in frames],
        "energy": pa.array([a.get_potential_energy() for a in frames], F64),
        "forces": pa.array([a.get_forces().tolist() for a in frames], MATRIX32),
        "stress": pa.array([s.tolist() for s in stresses(frames)], MATRIX32),
    }
    pq.write_table(pa.table(columns), path)


def write_alexandria(frames, path):
    columns = {
        "numbers": pa.array([a.numbers.tolist() for a in frames], pa.list_(pa.int64())),
        "positions": pa.array([a.positions.tolist() for a in frames], MATRIX),
        "cell": pa.array([a.cell.array.tolist() for a in frames], MATRIX),
        "pbc": pa.array([a.pbc.tolist() for a in frames], pa.list_(pa.bool_())),
        "energy": pa.array([a.get_potential_energy() for a in frames], F64),
        "forces": pa.array([a.get_forces().tolist() for a in frames], MATRIX),
        "stress": pa.array([s.tolist() for s in stresses(frames)], MATRIX),
    }
    pq.write_table(pa.table(columns), path)


def write_lemat(frames, path):
    kbar = [(-s / (0.1 * units.GPa)).tolist() for s in stresses(frames)]  # VASP's unit and sign
    columns = {
        "immutable_id": [f"agm{k // 6}" for k in range(len(frames))],
        "species_at_sites": pa.array(
            [a.get_chemical_symbols() for a in frames], pa.list_(pa.string())
        ),
        "cartesian_site_positions": pa.array([a.positions.tolist() for a in frames], MATRIX),
        "lattice_vectors": pa.array([a.cell.array.tolist() for a in frames], MATRIX),
        "dimension_types": pa.array([[1, 1, 1]] * len(frames), pa.list_(pa.int8())),
        "energy": pa.array([a.get_potential_energy() for a in frames], F64),
        "forces": pa.array(
            [None if k == 2 else a.get_forces().tolist() for k, a in enumerate(frames)], MATRIX
        ),
        "stress_tensor": pa.array([None if k == 3 else s for k, s in enumerate(kbar)], MATRIX),
        "functional": ["PBE"] * len(frames),
        "cross_compatibility": [True] * len(frames),
        "relaxation_step": pa.array(range(len(frames)), pa.int32()),
    }
    pq.write_table(pa.table(columns), path)


def write_colabfit(frames, path):
    columns = {
        "property_id": [f"PO_{k}" for k in range(len(frames))],
        "software": ["VASP"] * len(frames),
        "method": ["DFT-PBE"] * (len(frames) - 1) + ["DFT-r2SCAN"],
        "energy": pa.array([a.get_potential_energy() for a in frames], F64),
        "atomic_forces": pa.array([a.get_forces().tolist() for a in frames], MATRIX),
        "cauchy_stress": pa.array(
            [None if k == 3 else s.tolist() for k, s in enumerate(stresses(frames))], MATRIX
        ),
        "cauchy_stress_volume_normalized": pa.array([True] * len(frames)),
        "cell": pa.array([a.cell.array.tolist() for a in frames], MATRIX),
        "positions": pa.array([a.positions.tolist() for a in frames], MATRIX),
        "pbc": pa.array([a.pbc.tolist() for a in frames], pa.list_(pa.bool_())),
        "atomic_numbers": pa.array([a.numbers.tolist() for a in frames], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), path)


def write_matpes(frames, path):
    structures = [
        {
            "lattice": {
                "matrix": a.cell.array.tolist(),
                "pbc": a.pbc.tolist(),
                "volume": a.get_volume(),
            },
            "sites": [
                {"species": [{"element": s, "occu": 1}], "xyz": x, "abc": x, "label": s}
                for s, x in zip(a.get_chemical_symbols(), a.positions.tolist(), strict=True)
            ],
        }
        for a in frames
    ]
    columns = {
        "matpes_id": [f"matpes-{k}" for k in range(len(frames))],
        "structure": pa.array(structures),
        "energy": [a.get_potential_energy() for a in frames],
        "forces": [a.get_forces().tolist() for a in frames],
        "stress": [(-a.get_stress() / (0.1 * units.GPa)).tolist() for a in frames],
    }
    pq.write_table(pa.table(columns), path)


def write_s2ef(frames, path):
    columns = {
        "input_ids": pa.array([a.numbers.tolist() for a in frames], pa.list_(pa.int16())),
        "coords": pa.array([a.positions.tolist() for a in frames], MATRIX32),
        "forces": pa.array([a.get_forces().tolist() for a in frames], MATRIX32),
        "total_energy": pa.array([a.get_potential_energy() for a in frames], F64),
        "formation_energy": pa.array([0.0] * len(frames), F64),
    }
    pq.write_table(pa.table(columns), path)


# recipe -> writer, tolerance, frames whose forces and stress are null
SCHEMAS = {
    "mptrj": (write_mptrj, 1e-5, None, None),
    "omat24": (write_omat24, 1e-5, None, None),
    "alexandria": (write_alexandria, 1e-12, None, None),
    "lemat": (write_lemat, 1e-9, 2, 3),
    "colabfit": (write_colabfit, 1e-12, None, 3),
    "matpes": (write_matpes, 1e-9, None, None),
    "s2ef": (write_s2ef, 1e-5, None, None),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_recipe_reads_its_schema(name, alloys, tmp_path):
    writer, tolerance, no_forces, no_stress = SCHEMAS[name]
    writer(alloys, tmp_path / "rows.parquet")
    config = load_settings(ConvertConfig, Path(name))
    read = list(read_structures(tmp_path, config))
    assert len(read) == len(alloys)
    for k, (s, a) in enumerate(zip(read, alloys, strict=True)):
        assert s.atomic_numbers.tolist() == a.numbers.tolist()
        np.testing.assert_allclose(s.positions, a.positions, atol=tolerance)
        assert s.energy == pytest.approx(a.get_potential_energy(), abs=tolerance)
        assert (s.forces is None) == (k == no_forces)
        if s.forces is not None:
            np.testing.assert_allclose(s.forces, a.get_forces(), atol=tolerance)
        if name == "s2ef":
            assert not s.pbc.any() and s.stress is None
            continue
        np.testing.assert_allclose(s.cell, a.cell.array, atol=tolerance)
        assert s.pbc.all()
        assert (s.stress is None) == (k == no_stress)
        if s.stress is not None:
            np.testing.assert_allclose(
                s.stress, voigt_6_to_full_3x3_stress(a.get_stress()), atol=tolerance
            )
    if name != "s2ef":  # slabs without their cell are not what the test of lengths and nets is for
        findings = {f.test: f.outcome for f in check_units(str(tmp_path), config).findings}
        assert "fail" not in findings.values()
        assert findings["energy against forces"] == findings["energy against stress"] == "pass"


def test_every_shipped_recipe_is_tested():
    assert {path.stem for path in recipes_of(ConvertConfig).glob("*.yaml")} == {
        *SCHEMAS,
        "ref_labels",
    }


def test_conversion_of_reference_labels_by_recipe(alloys, tmp_path):
    frames = []
    for atoms in alloys:
        frame = atoms.copy()
        frame.info |= {"REF_energy": atoms.get_potential_energy(), "level_group": "EMT"}
        frame.info["REF_stress"] = atoms.get_stress(voigt=False)
        frame.arrays["REF_forces"] = atoms.get_forces()
        frames.append(frame)
    ase.io.write(tmp_path / "ref.extxyz", frames)
    config = load_settings(
        ConvertConfig, Path("ref_labels"), ["split_by=structure", "test_share=0", "valid_share=0"]
    )
    convert(tmp_path / "ref.extxyz", tmp_path / "out", config)
    read = sorted(
        iter_structures(tmp_path / "out", "train"), key=lambda s: int(s.structure_id.split("-")[-1])
    )
    for s, atoms in zip(read, alloys, strict=True):
        assert s.level_of_theory == "EMT" and s.energy == pytest.approx(
            atoms.get_potential_energy(), abs=1e-6
        )
        np.testing.assert_allclose(s.forces, atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(s.stress, atoms.get_stress(voigt=False), atol=1e-6)


def test_recipe_by_name_then_words(alloys, tmp_path):
    write_colabfit(alloys, tmp_path / "co.parquet")
    config = load_settings(ConvertConfig, Path("colabfit"), ["filters.method=DFT-PBE"])
    read = list(read_structures(tmp_path / "co.parquet", config))
    assert {s.level_of_theory for s in read} == {"DFT-PBE"} and len(read) == len(alloys) - 1
    assert [s.structure_id for s in read[:2]] == ["PO_0", "PO_1"]


def test_conversion_of_a_parquet_folder_by_recipe(alloys, tmp_path):
    (tmp_path / "in").mkdir()
    write_lemat(alloys[:12], tmp_path / "in" / "train-00000-of-00002.parquet")
    write_lemat(alloys[12:], tmp_path / "in" / "train-00001-of-00002.parquet")
    info = convert(
        tmp_path / "in",
        tmp_path / "out",
        load_settings(ConvertConfig, Path("lemat"), ["test_share=0"]),
    )
    assert sum(info["num_structures"].values()) == 24 and info["levels_of_theory"] == ["PBE"]
    first = next(iter_structures(tmp_path / "out", "train"))
    assert first.group.startswith("agm")


def test_wrong_sign_in_a_recipe_is_refused(alloys, tmp_path):
    write_lemat(alloys, tmp_path / "rows.parquet")
    config = load_settings(ConvertConfig, Path("lemat"), ["units.stress=kbar"])
    with pytest.raises(UnitError, match=r"pressure rises with volume .*: set units\.stress=-kbar"):
        convert(tmp_path / "rows.parquet", tmp_path / "out", config)


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(
        SettingsError, match=r"^mptraj: no such recipe file: .* alexandria, colabfit, .*, s2ef"
    ):
        load_settings(ConvertConfig, Path("mptraj"))
