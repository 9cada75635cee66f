"""Few-shot curves: error against the number of structures, for every strategy. Open `curve.py`
first.
"""
