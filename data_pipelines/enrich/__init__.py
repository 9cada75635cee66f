"""Cheaply labelled structures of rare elements, made by swapping them in for similar elements.

In: a converted data set and an oracle. Out: another data set, at the oracle's level of theory.
Start with `enrich.py`. `relatives.py` defines which elements are similar, `swap.py` changes the
structures, and `label_oracles.py` creates the calculators.
"""
