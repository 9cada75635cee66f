"""From any source to batches of graphs.

In: structures from files, databases, Parquet or Hugging Face data sets (`sources`). `convert`
checks them (`checks`) and writes a sharded data set (`store`) with element counts and reference
energies (`census`). Out: a weighted, resumable `stream` of batches. `demo` makes data for trying
all of this out.

Start with `structure.py`, which defines the canonical record, and `batch.py`, which defines the
input of a model.
"""
