"""From any source to batches of graphs.

In: structures in files, databases, Parquet or data sets of the hub (`sources`). `convert` checks
them (`checks`) and writes a data set of shards (`store`) with counts and reference energies
(`census`). Out: a weighted, resumable `stream` of batches. `demo` makes data to try all this on.

Open `structure.py` first, the canonical record, and `batch.py`, what a model gets.
"""
