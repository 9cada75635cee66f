"""The training stream: shards become weighted, packed batches, resumable on any number of ranks.
Open `stream.py` first.
"""
