"""Named models that ship with the package."""
