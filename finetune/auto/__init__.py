"""`strategy=auto`: the choice of a strategy by its errors on held-out structures."""
