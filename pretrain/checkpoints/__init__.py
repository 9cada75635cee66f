"""Checkpoints: written atomically, verified before reading, resumed on any number of ranks.

In: the state of engine and loop. Out: folders `step-N`. Open `checkpoints.py` first; `resume.py`
decides what a resumed run may change.
"""
