"""What a data set holds, and the weights that make its rare elements count.

In: converted shards. Out: a census (counts, force RMS, reference energies E0) and importance
weights of structures and elements. Open `census.py` first, then `weights.py`.
"""
