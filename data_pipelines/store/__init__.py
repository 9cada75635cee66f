"""The Parquet shards of a converted data set.

In: structures, or the folder of a data set. Out: shards, or structures in file order
(`iter_structures`) and by blocks in any order (`BlockReader`).

Open `shards.py` first, which has the schema and the checks of integrity, then `blocks.py`.
"""
