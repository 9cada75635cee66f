"""Models by reference: load them from, and publish them to, a folder hub or the Hugging Face hub.

Loading: a reference comes in, which is a folder, a name of the zoo or `owner/name[@revision]`; a
LoadedModel, pinned to a revision, goes out. Publishing: a model folder comes in, a pinned reference
goes out.

Open `load.py` first. `publish.py` decides what may be published; `folder_hub.py` and
`hugging_face.py` are the two kinds of hubs; `remote.py` is what their downloads share.
"""
