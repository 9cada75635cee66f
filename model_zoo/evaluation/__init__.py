"""How wrong a potential is on labelled structures.

In: a potential and structures. Out: `Predictions` (pairs of reference and prediction), their
`ErrorSummary` (evaluation.json) and the parity figure. Open `evaluation.py` first, then
`summary.py`.
"""
