"""Predictions of a potential on labelled structures, and the summary of its errors."""
