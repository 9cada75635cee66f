"""An input of i-PI: dynamics of start.extxyz, from 300 K."""

from __future__ import annotations


INPUT = """
<simulation verbosity='quiet'>
  <output prefix='run'>
    <properties filename='out' stride='5'>[potential, conserved]</properties>
    {outputs}
  </output>
  <total_steps>10</total_steps>
  <prng><seed>1</seed></prng>
  <ffdirect name='potential'>{potential}</ffdirect>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'>start.extxyz</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='potential'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'>1</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


def dynamics_input(
    pes: str, beads: int, path: str = "", outputs: str = "", **parameters: object
) -> str:
    """The input for a driver and its parameters.

    `pes` is the name of one of i-PI's drivers, or `custom` for the driver at `path`. `outputs`
    are further elements of i-PI's output.
    """
    listed = ", ".join(f"{name}: {value}" for name, value in parameters.items())
    where = f"<pes_path>{path}</pes_path>" if path else ""
    potential = (
        f"<pes>{pes}</pes>{where}<parameters>{{template: start.extxyz, {listed}}}</parameters>"
    )
    return INPUT.format(potential=potential, beads=beads, outputs=outputs)
