"""Networks: atomic numbers and edge vectors become invariant features of every atom.

`interface.py` says what a network must provide; open it first. `architectures.py` lists the
networks. Each has a folder: `gaunt/` is the one that evenfield is built on, `schnet/` is a simple
baseline. The other files hold parts that any network may use.
"""
