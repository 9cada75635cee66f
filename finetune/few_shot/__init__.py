"""Few-shot curves: errors against the number of structures, for strategies and from scratch.

In: a model and a converted data set. Out: fewshot.json and its figure. Open `curve.py` first.
`results.py` reads the file and computes how many times fewer structures a strategy needs.
"""
