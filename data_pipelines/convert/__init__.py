"""Conversion of a source to a data set.

In: a source (`sources`) and a `ConvertConfig`, perhaps from one of the `recipes`. Out: a folder
with Parquet shards, dataset_info.json and census.json. A conversion processes the parts of the
source in parallel. If it is interrupted, the next run continues with the missing parts.

Start with `convert.py`.
"""
