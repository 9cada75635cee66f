"""The potential: network, readout and core repulsion give energies, forces and stress.

In: a batch of structures with their neighbours. Out: energies, forces and stress. Open
`potential.py` first.
"""
