"""A corpus: one data set of several sources, each with its own columns, licence and citation.

In: a `CorpusConfig`, perhaps from one of the `recipes`. Out: a converted data set (`convert`) that
records its sources, and a data card. Sources whose licence does not allow a published model are
refused, and no material is trained on in one source and held out in another.

Open `corpus.py` first.
"""
