"""The model folder: how a model is stored and read, without pickles and without running code.

In: a Potential with its ModelRecord and its evaluation. Out: a folder of safetensors, JSON, a card
and a manifest of hashes; and the same three things when the folder is read.

Open `folder.py` first. `manifest.py` decides which files are read at all, `weights.py` turns
tensors into bytes, `upgrade.py` reads older formats, and `card.py` writes README.md.
"""
