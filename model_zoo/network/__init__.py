"""Networks: atomic numbers and edge vectors become invariant features of every atom."""
