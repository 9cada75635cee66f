"""The training stream: converted data sets become weighted, shuffled, packed batches, without end.

In: folders of converted data sets. Out: batches, and a small state from which any number of ranks
can continue. Open `stream.py` first, then `collection.py`, which chooses between one data set, a
mixture, and virtual ranks.
"""
