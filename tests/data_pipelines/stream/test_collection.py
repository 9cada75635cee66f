"""Several data sets as one: their levels of theory must have one zero each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.training_stream import StreamError


@pytest.fixture
def shifted(train_structures, tmp_path):
    """A function that writes the training structures with `shift` eV/atom more energy."""

    def write(name: str, shift: float, **fields) -> str:
        structures = []
        for structure in train_structures:
            energy = structure.energy + shift * len(structure)
            moved = replace(structure, split="train", **fields).with_labels(energy=energy)
            structures.append(moved)
        origin = {"file": name, "sha256": name}
        write_data_set(structures, Path(tmp_path / name), origin, ConvertConfig())
        return str(tmp_path / name)

    return write


def test_other_zeros_of_one_level_are_refused_by_name(shifted):
    folders = [shifted("one", 0.0), shifted("two", 10.0)]
    with pytest.raises(StreamError, match=r"two: energies of 'EMT.*' are \+10\.0 eV/atom from"):
        Collection(folders)


def test_small_differences_and_other_levels_are_accepted(shifted):
    one = shifted("one", 0.0)
    Collection([one, shifted("near", 3.0)])
    Collection([one, shifted("other", 20.0, level_of_theory="shifted")])


def test_one_level_in_two_spellings_is_refused_by_both_names(shifted):
    folders = [
        shifted("one", 0.0, level_of_theory="MP PBE"),
        shifted("two", 0.0, level_of_theory="mp_pbe"),
    ]
    with pytest.raises(
        StreamError, match=r"two: has the level of theory 'mp_pbe', and .*one has '"
    ):
        Collection(folders)
    Collection(folders[:1])
