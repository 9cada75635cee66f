"""The training stream: converted data sets become an endless stream of weighted, packed batches.

In: folders of converted data sets. Out: shuffled batches, and a small state from which any number
of ranks can resume. Read `source.py` first (which structures come in which order), then
`windows.py` (how they become batches), then `collection.py`, which chooses between a single data
set (`stream.py`), a mixture of several (`mixture.py`), and virtual ranks (`virtual_ranks.py`).
"""
