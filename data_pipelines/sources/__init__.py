"""Readers.

In: a file, folder, glob, URL or hub data set, and a `SourceConfig` that says what its columns
mean. Out: checked canonical structures, part by part.

Open `read.py` first. A new file format is a module like `ase_files.py` with a subclass of
`SourceFormat` (`source_format.py`), and one line in `formats.py`.
"""
