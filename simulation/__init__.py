"""Molecular dynamics with a published model.

In: a structure and an ASE calculator. Out: a trajectory, and a report on the drift of the energy.

Open `dynamics.py` first. `guard.py` stops a simulation that has left the domain of its potential,
and `commands.py` has the commands.
"""
