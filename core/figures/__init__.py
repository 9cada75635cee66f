"""What all pictures share: colours, ticks, writing to disk, and the periodic table of values.

In: numbers. Out: matplotlib figures and PNG bytes. Open `style.py` first; `periodic_table.py` draws
one value for each element. Figures of particular results are next to the results that they show.
"""
