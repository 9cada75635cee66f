"""Molecular dynamics with a published model.

In: a structure and an ASE calculator. Out: a trajectory, and a report on the drift of the energy.

Open `dynamics.py` first; `commands.py` is the command `evenfield simulate`.
"""
