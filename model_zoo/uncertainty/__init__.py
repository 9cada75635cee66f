"""What a model knows of its own errors, stored next to its weights.

Start with `record.py`, which says what is stored. `estimates.py` makes uncertainties of it for the
calculator; `distances.py` says how far an atom is from the training atoms of its element, and
`conformal.py` turns errors on structures that were held out into radii with a stated coverage.
`finetune/safety/uncertainty.py` makes the record, and `coverage.py` keeps what its radii covered on
a test split.
"""
