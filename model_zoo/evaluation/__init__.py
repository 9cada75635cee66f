"""Errors of a potential on labelled structures.

In: a potential and structures. Out: `Predictions` (pairs of reference and prediction), an
`ErrorSummary` (evaluation.json) and a parity figure. Open `evaluation.py` first, then
`summary.py`.
"""
