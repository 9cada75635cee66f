"""Molecular dynamics with a published model.

In: a structure and an ASE calculator. Out: a trajectory, and a report on the drift of the energy.

Open `dynamics.py` first; `guard.py` stops what has left the domain of its potential; `commands.py`
has the commands.
"""
