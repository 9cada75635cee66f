"""Readers for files, URLs and Hugging Face data sets.

In: a file, folder, glob, URL or hub data set, and a `SourceConfig` that says what its columns
mean. Out: checked canonical structures, part by part.

Start with `read.py`. To add a file format, write a module like `ase_files.py` with a subclass of
`SourceFormat` (`source_format.py`), and add one line to `formats.py`.
"""
