"""Checks of a model: one file for each check, found by its name.

The file `reach.py` is the command `evenfield check reach`. Only `trust`, `baselines`, `noise` and
`linescan` need data. To add a check, add a file with a function `check`; `../check.py` says what it
takes and returns. `phases.py` is a short example.
"""
