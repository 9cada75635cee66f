"""Counts of a data set per element and level of theory, reference energies, and the importance
weights that follow from them. Open `census.py` first.
"""
