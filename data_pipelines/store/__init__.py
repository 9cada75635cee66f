"""Storage of a converted data set in Parquet shards.

In: structures, or the folder of a data set. Out: shards, or structures in file order
(`iter_structures`) or in blocks in any order (`BlockReader`).

Start with `shards.py`, which has the schema and the integrity checks, then read `blocks.py`.
"""
