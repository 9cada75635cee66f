"""Load models by reference, and publish them, on a folder hub or the Hugging Face hub.

Loading takes a reference (a folder, a zoo name or `owner/name[@revision]`) and returns a
LoadedModel that is pinned to a revision. Publishing takes a model folder and returns a pinned
reference.

Open `load.py` first. `publish.py` decides what may be published; `folder_hub.py` and
`hugging_face.py` are the two kinds of hubs; `remote.py` holds what their downloads share.
"""
