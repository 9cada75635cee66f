"""Demo data: clusters, molecules and alloys, labelled by GFN1-xTB and EMT.

In: a number of structures and a seed. Out: one extended xyz file in which most elements are rare,
as in real collections of data.

Open `generate.py` first.
"""
