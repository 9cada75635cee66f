"""Learning on the way: explore, choose, label, refit, calibrate, and go on.

In: a model, structures and an oracle. Out: a model that knows what the simulations met, the labels
as a data set, and a page that tells how it went.

Open `loop.py` first. `explore.py` runs guarded dynamics, `choose.py` picks structures,
`labelling.py` asks the oracle in a process of its own (`labeller.py`) or by a job array
(`array_job.py`), `fit.py` makes the next model, and `stall.py` a trained one where the refit no
longer helps. `page.py` makes the page, with `pictures.py`. `store.py` keeps every step on disk, so
that a loop that was killed goes on.
"""
