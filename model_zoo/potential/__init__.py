"""The potential: network, readout and core repulsion give energies, forces and stress. Open
`potential.py` first.
"""
