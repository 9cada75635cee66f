"""A corpus: one data set built from several sources with their own columns, licences and citations.

In: a `CorpusConfig`, perhaps from one of the `recipes`. Out: a converted data set (`convert`) that
records its sources, and a data card. A source is refused if its licence does not allow publishing a
model trained on it. A material is never in training in one source and held out in another, as far
as the splits that sources state allow this.

Start with `corpus.py`.
"""
