"""Checks of a model, of which only `trust` needs labels: one file for each, found by its name.

The file `reach.py` is the command `evenfield check reach`. To add a check, add a file with a
function `check`; `../check.py` says what it takes and returns. Start with `phases.py`, a short one.
"""
