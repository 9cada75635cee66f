"""Molecular dynamics with a published model."""
