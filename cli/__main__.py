"""`python -m evenfield.cli`, the same as the console script; launchers such as torchrun use it."""

from . import main


main()
