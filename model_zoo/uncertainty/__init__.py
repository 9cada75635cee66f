"""Uncertainty estimates of a model, stored next to its weights.

- `record.py`     what is stored; start here
- `estimates.py`  computes the uncertainties of a structure for the calculator
- `distances.py`  how far an atom is from the training atoms of its element
- `conformal.py`  turns errors on held-out structures into radii with a stated coverage
- `coverage.py`   records how many test errors the radii covered

`finetune/safety/uncertainty.py` creates the record.
"""
