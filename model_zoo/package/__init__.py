"""The model folder: safetensors, config, card and manifest, read without running a pickle. Open
`folder.py` first.
"""
