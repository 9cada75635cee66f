"""matcalc, a benchmark that nobody here wrote, agrees with our own checks where both look."""

from __future__ import annotations

import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.diagnostics.checks.elastic import elastic_constants
from evenfield.diagnostics.sanity.crystals import lattice_parameter


matcalc = pytest.importorskip("matcalc", reason="pip install matcalc")

STRAINS = (-0.002, -0.001, 0.001, 0.002)


def emt() -> Calculator:
    return EMT()


def ours() -> Calculator:
    model = model_zoo.load("evenfield-1")
    return model.calculator(level_of_theory="mp_pbe", dtype="float64")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [emt, ours])
def test_elastic_constants_and_edge_are_those_of_the_referee(make) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    crystal = AseAtomsAdaptor.get_structure(bulk("Cu", a=3.61, cubic=True))
    referee = matcalc.ElasticityCalc(
        make(), fmax=1e-4, norm_strains=STRAINS, shear_strains=STRAINS, units_GPa=True
    ).calc(crystal)
    tensor = referee["elastic_tensor"].voigt
    found = elastic_constants(make(), "Cu", "fcc")
    assert found is not None
    own = found.by_stress
    expected = pytest.approx([tensor[0, 0], tensor[0, 1], tensor[3, 3]], rel=0.01)
    assert [own.c11, own.c12, own.c44] == expected
    assert lattice_parameter("fcc", found.volume) == pytest.approx(referee["a"], rel=1e-3)
