"""Cheap labels for rare elements: structures of relatives with the element swapped in.

In: a converted data set and an oracle. Out: another data set, at the oracle's level of theory.
Open `enrich.py` first; `relatives.py` says who stands in for whom, `swap.py` moves the atoms, and
`label_oracles.py` makes the calculators.
"""
