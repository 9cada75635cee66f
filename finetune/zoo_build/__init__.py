"""Training of the named models that the package ships."""
