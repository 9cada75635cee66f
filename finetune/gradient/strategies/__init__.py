"""Gradient strategies, one in each module, which choose the parameters; start with `full.py`."""
