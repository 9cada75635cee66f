"""Statistics of a data set, and importance weights for its rare elements.

In: converted shards. Out: a census (counts, force RMS, reference energies E0) and importance
weights of structures and elements. Start with `census.py`, then read `weights.py`.
"""
