"""`evenfield simulate`: relax a structure and run dynamics with a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.command_line import (
    FolderHub,
    LevelOfTheory,
    ModelReference,
    Overrides,
    settings_option,
)


def simulate(
    model: ModelReference,
    structure: Annotated[Path, typer.Argument(help="structure in any file that ASE reads")],
    out: Annotated[Path, typer.Argument(help="folder for trajectory.traj and dynamics.json")],
    overrides: Overrides = None,
    folder_hub: FolderHub = None,
    level_of_theory: LevelOfTheory = None,
    show_settings: Annotated[bool, settings_option("simulation.dynamics:DynamicsConfig")] = False,
) -> None:
    """Relax a structure, run NVE dynamics and report the drift of the energy.

    Example: evenfield simulate me/uniform copper.cif runs/copper steps=1000 --folder-hub runs/hub
    """
    from ..core.settings import load_settings
    from ..data_pipelines.sources.ase_files import read_one
    from ..model_zoo.hub.load import load
    from .dynamics import TRAJECTORY_FILE, DynamicsConfig, relax_and_run

    config = load_settings(DynamicsConfig, None, overrides)
    calculator = load(model, folder_hub).calculator(level_of_theory=level_of_theory)
    result = relax_and_run(read_one(structure), calculator, out, config)
    state = "relaxed" if result.relaxed else "not fully relaxed"
    typer.echo(
        f"{result.formula}: {state} after {result.relaxation_steps} steps; "
        f"NVE {config.steps} x {config.time_step} fs at {result.mean_temperature:.0f} K: "
        f"drift {result.drift_mev_per_atom_ps:.3f} meV/atom/ps, "
        f"rms {result.rms_mev_per_atom:.3f} meV/atom; {out / TRAJECTORY_FILE}"
    )
