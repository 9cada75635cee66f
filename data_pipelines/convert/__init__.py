"""Conversion: a source becomes Parquet shards with a census, in restartable parts. Open
`convert.py` first.
"""
