"""Readers: a file, folder, database, URL or hub data set becomes checked structures. Open
`read.py` first.
"""
