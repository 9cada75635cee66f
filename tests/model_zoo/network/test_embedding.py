"""Element descriptors and the embedding that starts from them."""

from __future__ import annotations

import torch
from ase.data import chemical_symbols

from evenfield.model_zoo.network.embedding import (
    ElementEmbedding,
    electron_configuration,
    element_descriptors,
    slater_charge,
)


def number(symbol: str) -> int:
    return chemical_symbols.index(symbol)


def test_configurations_of_textbook_atoms() -> None:
    assert electron_configuration(number("Fe")) == {
        (1, 0): 2, (2, 0): 2, (2, 1): 6, (3, 0): 2, (3, 1): 6, (4, 0): 2, (3, 2): 6,
    }  # fmt: skip
    assert sum(electron_configuration(118).values()) == 118
    assert electron_configuration(number("Og"))[7, 1] == 6


def test_slater_charges_of_the_first_row() -> None:
    """Slater's rules as tabulated in textbooks."""
    expected = {"Li": 1.30, "C": 3.25, "N": 3.90, "O": 4.55, "F": 5.20, "Na": 2.20, "Si": 4.15}
    for symbol, charge in expected.items():
        assert abs(slater_charge(number(symbol)) - charge) < 1e-9, symbol


def test_every_element_has_its_own_finite_row() -> None:
    table = torch.from_numpy(element_descriptors())
    assert table.shape == (119, 9)
    assert torch.isfinite(table).all()
    assert len(torch.unique(table[1:], dim=0)) == 118


def test_untrained_embedding_puts_chemical_neighbours_near() -> None:
    """Each of these pairs is closer than nearly all other pairs of either element."""
    torch.manual_seed(0)
    weight = ElementEmbedding(32).weight.detach()
    for a, b in [("Si", "Ge"), ("Na", "K"), ("Cl", "Br"), ("Fe", "Co"), ("Pr", "Nd"), ("Zr", "Hf")]:
        distance = (weight[1:] - weight[number(a)]).norm(dim=1)
        rank = int(
            (distance < distance[number(b) - 1]).sum()
        )  # the element itself is at distance 0
        assert rank <= 8, f"{b} is neighbour {rank} of {a}"
