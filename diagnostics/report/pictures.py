"""Pictures of a report, embedded in the page and saved as files next to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ...core.figures.style import save_picture
from ...core.pages.page import Picture


@dataclass(frozen=True)
class PictureFolder:
    """The folder `pictures` below the folder of a report."""

    report: Path

    def save(self, figure: Figure, name: str, alt: str) -> Picture:
        """Write NAME.png and NAME.svg, and return the picture for the page.

        alt: alternative text, for readers who cannot see the picture.
        """
        png = save_picture(figure, self.report / "pictures", name)
        return Picture(alt, png, caption=f"pictures/{name}.png, pictures/{name}.svg")
