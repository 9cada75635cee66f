"""What the physical checks share: calls of calculators, crystals, test systems, references.

In: an ASE calculator. Out: answers, curves and systems for the files in `../checks/`. `config.py`
has the settings, and `systems.py` the structures that are simulated.
"""
