"""Probe sets that are stored with a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.build import bulk

from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.safety.forgetting import (
    PROBE_FILE,
    SAMPLES,
    chosen_probe,
    forgetting_report,
    probe_file,
    stored_probe,
)


def test_a_sample_without_forces_is_compared_by_its_energy(model):
    """Equations of state have energies alone; they ended a fine-tuning after all its work."""
    atoms = bulk("Cu", cubic=True)
    level = model.potential.config.levels_of_theory[0]
    bare = Structure.from_atoms(atoms, level, "bare", SAMPLES, energy=-1.0)
    whole = Structure.from_atoms(
        atoms, level, "whole", SAMPLES, energy=-1.0, forces=np.zeros((4, 3))
    )
    for structures, labels in (([bare], {"energy"}), ([bare, whole], {"energy", "forces"})):
        files = {PROBE_FILE: probe_file(structures)}
        again = stored_probe(replace(model, attachments=files))
        assert [set(one.labels) for one in again] == [set(one.labels) for one in structures]
        (row,) = forgetting_report(model.potential, model.potential, again).rows
        assert labels <= {name for name, error in row.before.items() if error > 0}


def test_data_that_are_named_take_the_place_of_the_stored_probe(model, data_set):
    """A model that carries a probe set ignored them without a word."""
    level = model.potential.config.levels_of_theory[0]
    mine = Structure.from_atoms(bulk("Cu"), level, "mine", SAMPLES, energy=-1.0)
    carrying = replace(model, attachments={PROBE_FILE: probe_file([mine])})
    assert [len(one) for one in chosen_probe(carrying)] == [1]
    named = [one for one in chosen_probe(carrying, data_set) if one.group == SAMPLES]
    assert len(named) > 1
    # without either, only structures that the model makes itself
    assert SAMPLES not in {one.group for one in chosen_probe(replace(model, attachments={}))}
