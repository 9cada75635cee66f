"""Known physics beside the learned part: dispersion, and charges that reach across cells.

In: a structure. Out: its energy, forces, stress and charges. Labels minus these are what a model
learns, and what it predicts is added to them again (`residual.py`).

Open `physics.py` first, then `config.py`, the settings, which are hashed into data and models.
`coulomb.py` and `dispersion.py` are the terms.
"""
