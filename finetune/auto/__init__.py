"""The choice among strategies by held-out structures: `strategy=auto`."""
