"""Pictures of labelled structures: which of them, in which order, and what stands for them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from ase.build import bulk, fcc111, molecule
from matplotlib.image import imread

from evenfield.core.pages.page import Picture, Text
from evenfield.simulation.learn.pictures import MOST_DRAWN, Surprise, pictures


def test_the_largest_errors_are_drawn_first() -> None:
    """Crystals, slabs and molecules; without any there is a sentence."""
    kinds = [bulk("Cu", cubic=True), fcc111("Au", (2, 2, 2), vacuum=5.0), molecule("CH3CH2OH")]
    many = [
        Surprise(f"001-{number:03d}", kinds[number % 3], 0.1 * (number + 1), number % 4)
        for number in range(MOST_DRAWN + 3)
    ]
    text, picture = pictures(many)
    assert isinstance(text, Text) and text.text.startswith(f"The {MOST_DRAWN} labelled structures")
    assert isinstance(picture, Picture)
    assert picture.alt == (
        f"{MOST_DRAWN} structures; the largest error has 001-014 (C2H6O), 1.50 eV/A on atom 2"
    )
    pixels = imread(BytesIO(picture.png))
    assert len(picture.png) < 400_000 and pixels.shape[1] == 960
    # the atom with the error is pink in each: (204, 121, 167)
    pink = np.abs(pixels[..., :3] - np.array([204, 121, 167]) / 255).max(-1) < 0.01
    height, width = pink.shape
    for row in range(3):
        for column in range(4):
            part = pink[
                row * height // 3 : (row + 1) * height // 3,
                column * width // 4 : (column + 1) * width // 4,
            ]
            assert part.sum() > 20
    # equal input gives equal bytes, whatever the order
    assert pictures(many[::-1])[1] == picture

    (nothing,) = pictures([])
    assert isinstance(nothing, Text)
