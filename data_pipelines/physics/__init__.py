"""Analytic physics next to the learned model: dispersion and long-range electrostatics.

In: a structure. Out: its energy, forces, stress and charges. These are subtracted from the labels
before training, and added to the model's predictions afterwards (`residual.py`).

Start with `physics.py`, then read the settings in `config.py`. Data sets and models store a hash of
the settings. `coulomb.py` and `dispersion.py` are the two terms.
"""
