"""Self-contained HTML pages, all with the same layout and stylesheet.

In: sections of text, tables and pictures. Out: a single file that a browser can show offline. Start
with `page.py`. It is used for the inspection of a data set, the live page of a run, and the report
of finished runs.
"""
