"""Conformance suite that every network and potential must pass; for other projects' models too."""
