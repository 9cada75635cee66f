"""Conversion.

In: a source (`sources`) and a `ConvertConfig`, perhaps from one of the `recipes`. Out: a folder
with Parquet shards, dataset_info.json and census.json. It works in parts, in parallel, and
continues where it was stopped.

Open `convert.py` first.
"""
