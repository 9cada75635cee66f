"""Loading and publishing by reference: zoo name, folder, folder hub or the Hugging Face hub. Open
`load.py` first.
"""
