"""The model folder: how a model is stored and read, without pickles and without running code.

Saving turns a Potential, its ModelRecord and its evaluation into a folder with safetensors, JSON, a
model card and a manifest of hashes. Reading the folder gives the same three objects back.

Open `folder.py` first. `manifest.py` decides which files may be read, `weights.py` converts tensors
to bytes, `upgrade.py` reads older formats, and `card.py` writes README.md.
"""
