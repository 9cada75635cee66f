"""The closed form of a path integral, against dynamics that i-PI makes."""

from __future__ import annotations

import gc

import ase.io
import numpy as np
import pytest
from ase import Atoms, units

from evenfield.diagnostics.checks.beads import bead_energy, quantum_energy


TEMPERATURE = 300.0  # K
WAVE_NUMBER = 2000.0  # 1/cm
ATOMS = 64
HYDROGEN = 1837.36  # electron masses

INPUT = """
<simulation verbosity='quiet'>
  <output prefix='run'>
    <properties filename='out' stride='1000'>[potential]</properties>
  </output>
  <total_steps>100000</total_steps>
  <prng><seed>3</seed></prng>
  <ffdirect name='spring'><pes>harmonic</pes><parameters>{{k1: {stiffness}}}</parameters></ffdirect>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'>start.extxyz</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='spring'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <fixcom>False</fixcom>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>0.5</timestep>
        <thermostat mode='pile_l'><tau units='femtosecond'>8</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


# i-PI uses names that Python deprecates, and leaves files open until they are collected
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("beads", [1, 8])
def test_i_pi_samples_the_energy_of_the_closed_form(beads, tmp_path, monkeypatch):
    """Hydrogen atoms, each on a spring: twice the potential energy is the energy at P beads."""
    pytest.importorskip("ipi", reason="comes with the extra `engines`")
    from ipi.utils.scripting import InteractiveSimulation

    monkeypatch.chdir(tmp_path)
    # many at once, since a step of i-PI takes as long for one atom
    atoms = Atoms(f"H{ATOMS}", np.zeros((ATOMS, 3)), cell=[20, 20, 20])
    ase.io.write("start.extxyz", atoms)
    quantum = WAVE_NUMBER * units.invcm / units.Hartree
    stiffness = HYDROGEN * quantum**2
    run = InteractiveSimulation(INPUT.format(stiffness=stiffness, beads=beads))
    run.run(80)
    system = run.syslist[0]
    potentials = []
    for _ in range(160):
        run.run(1)
        potentials.append(system.forces.pots.mean())
    sampled = 2 * float(np.mean(potentials)) * units.Hartree

    # three directions of each atom
    wave_numbers = np.full(3 * ATOMS, WAVE_NUMBER)
    expected = bead_energy(wave_numbers, TEMPERATURE, beads)
    assert sampled == pytest.approx(expected, rel=0.08)
    # and not the quantum energy, from which eight beads are still far
    assert sampled < 0.9 * quantum_energy(wave_numbers, TEMPERATURE)

    # collected here, not in another test
    del run, system
    gc.collect()
