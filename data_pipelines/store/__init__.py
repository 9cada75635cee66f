"""The Parquet shards of a converted data set: schema, writing, reading and integrity. Open
`shards.py` first.
"""
