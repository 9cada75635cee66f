"""Fine-tuning by linear algebra: readout and reference energies, solved exactly.

In: a potential, one of its heads and labelled structures. Out: changed weights of that head, a
report and the posterior. Open `refit.py` first; `design_rows.py` makes the rows of the linear
problem, `prior.py` chooses the prior precision, `ridge.py` solves.
"""
