"""HTML pages that explain themselves and load nothing: one layout and one stylesheet for all.

In: sections of text, tables and pictures. Out: one file that a browser opens without a network.
Open `page.py` first. The inspection of a data set, the page that follows a run and the report of
finished runs are written with it.
"""
