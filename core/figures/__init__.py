"""Shared parts of all pictures: colours, ticks, writing to disk, and periodic tables of values.

In: numbers. Out: matplotlib figures and PNG bytes. Start with `style.py`; `periodic_table.py` draws
one value for each element. Figures of specific results are in the packages of these results.
"""
