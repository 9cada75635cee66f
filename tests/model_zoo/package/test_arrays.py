"""Arrays come back as they were, in whatever order their numbers lay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from evenfield.model_zoo.package.arrays import arrays_file


ROOT = Path(__file__).parents[3]
ORDERS = {
    "rows": lambda array: array,
    "columns": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "part": lambda array: np.pad(array, ((0, 0), (0, 3)))[:, : array.shape[1]],
    "reversed": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "repeated": lambda array: np.broadcast_to(array[:, :1], array.shape),
}


@pytest.mark.parametrize("order", ORDERS)
def test_round_trip(order) -> None:
    array = ORDERS[order](np.arange(12.0).reshape(3, 4))
    found = load(arrays_file({"one": array}, "facts"))["one"]
    np.testing.assert_array_equal(found, array)


def test_nothing_else_writes_arrays_of_numpy() -> None:
    # safetensors.numpy.save mixes up the numbers of an array that is not contiguous
    packages = ("core", "data_pipelines", "model_zoo", "pretrain", "finetune", "simulation")
    files = [file for name in packages for file in (ROOT / name).rglob("*.py")]
    writers = []
    for file in files:
        for line in file.read_text().splitlines():
            if line.startswith("from safetensors.numpy import") and "save" in line:
                writers.append(file.relative_to(ROOT).as_posix())
    assert writers == ["model_zoo/package/arrays.py"]
