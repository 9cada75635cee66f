"""What the physical checks share: how a calculator is asked, crystals, test systems, references.

In: an ASE calculator. Out: answers, curves and systems, for the files in `../checks/`. Open
`config.py` for the settings, `systems.py` for what is simulated.
"""
