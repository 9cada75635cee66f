"""Networks: from atomic numbers and edge vectors to invariant features of every atom.

Open `interface.py` first; it says what a network must provide. `architectures.py` lists the
networks. Each has its own folder: `gaunt/` is the main network of evenfield, and `schnet/` is a
simple baseline. The other files hold parts that any network may use.
"""
