"""The training stream: converted data sets become weighted, shuffled, packed batches, without end.

In: folders of converted data sets. Out: batches, and a small state from which any number of ranks
can continue. Open `source.py` first (which structures, in which order), then `windows.py` (how they
become batches), then `collection.py`, which chooses between one data set (`stream.py`), a mixture
of several, and virtual ranks.
"""
