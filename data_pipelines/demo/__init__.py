"""Demo data: seeded clusters, molecules and alloys, labelled by GFN1-xTB and EMT. Open
`generate.py` first.
"""
