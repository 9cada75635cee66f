"""A model as one file for engines that speak metatomic (extra `metatomic`): LAMMPS, i-PI, ASE and others.

https://docs.metatensor.org/metatomic lists them. The file holds the network and all that surrounds it as TorchScript;
it is written for others and never read here, for who reads such a file runs what it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..hub.load import LoadedModel
from ..package.folder import DTYPES
from .calculator import checked_level


def export_metatomic(
    model: LoadedModel,
    path: Path | str,
    *,
    level_of_theory: str | None = None,
    dtype: str = "float64",
) -> Path:
    """Write one level of theory of a model (its first when None) as a metatomic file; returns the path.

    `dtype` is that of the network and of what goes between it and an engine: float32 is faster and leaves seven digits
    to the total energy, E0 and all. Raises ValueError without metatomic, for a path that engines would not take, and
    for a level of theory that was trained on no element.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(
            f"{path}: engines that speak metatomic load files that end in .pt: name it so"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose float32 or float64")
    level = checked_level(model.potential, level_of_theory)
    if not model.record.elements.get(level):
        raise ValueError(
            f"{model.reference}: lists no element for {level}, so an engine would refuse every structure"
        )
    with _index_select_of_torch():
        try:
            from .metatomic_model import write
        except ImportError as error:
            raise ValueError(
                f"a metatomic export needs metatomic ({error}): pip install 'evenfield[metatomic]'"
            ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(model, level, dtype, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@contextmanager
def _index_select_of_torch() -> Iterator[None]:
    """torch-geometric puts a function of its own in its place, which TorchScript cannot compile inside metatensor."""
    replaced = torch.index_select
    torch.index_select = torch._C._VariableFunctions.index_select
    try:
        yield
    finally:
        torch.index_select = replaced
