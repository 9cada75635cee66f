"""`evenfield simulate` runs dynamics with a model; `evenfield learn` also improves the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.command_line import (
    Device,
    DType,
    FolderHub,
    LevelOfTheory,
    ModelReference,
    Overrides,
    Overwrite,
    Recipe,
    settings_option,
)
from ..core.errors import EvenfieldError
from ..core.terminal import say


if TYPE_CHECKING:
    from .dynamics import DynamicsConfig, DynamicsResult


def simulate(
    model: ModelReference,
    structure: Annotated[Path, typer.Argument(help="structure in any file that ASE reads")],
    out: Annotated[Path, typer.Argument(help="folder for trajectory.traj and dynamics.json")],
    overrides: Overrides = None,
    folder_hub: FolderHub = None,
    level_of_theory: LevelOfTheory = None,
    device: Device = "cpu",
    dtype: DType = None,
    overwrite: Overwrite = False,
    show_settings: Annotated[bool, settings_option("simulation.dynamics:DynamicsConfig")] = False,
) -> None:
    """Relax a structure, run NVE dynamics and report the drift of the energy.

    If the dynamics explodes or breaks a rule of guard.*, the command ends with an error. It keeps
    the frames and figures up to that point. With --overwrite it moves them to OUT-failed, and the
    older result stays in OUT.

    Example: evenfield simulate me/uniform copper.cif runs/copper steps=1000 --folder-hub runs/hub
    """
    from ..core.destination import check_destination
    from ..core.freed_memory import keep_freed_memory
    from ..core.settings import load_settings
    from ..data_pipelines.sources.ase_files import read_one
    from ..model_zoo.hub.load import load
    from .dynamics import TRAJECTORY_FILE, DynamicsConfig, relax_and_run

    config = load_settings(DynamicsConfig, None, overrides)
    kinds = ["a simulation"]
    check_destination(out, overwrite=overwrite, kinds=kinds, inputs=[structure, model])
    if overwrite:
        failed = _place_of_failed(out)
        check_destination(failed, overwrite=True, kinds=kinds, inputs=[structure, model])
    atoms = read_one(structure)
    loaded = load(model, folder_hub)
    keep_freed_memory()
    guard = config.guard
    # If the guard checks every step, one evaluation gives forces and uncertainties. Otherwise a
    # second calculator computes uncertainties only at the steps that are checked.
    apart = guard.needs_uncertainty and guard.every > 1
    calculator = loaded.calculator(
        device=device,
        level_of_theory=level_of_theory,
        dtype=dtype,
        uncertainty=guard.needs_uncertainty and not apart,
        coverage=guard.coverage,
    )
    judge = None
    if apart:
        judge = loaded.calculator(
            device=device,
            level_of_theory=level_of_theory,
            dtype=dtype,
            warn_outside=False,
            uncertainty=True,
            coverage=guard.coverage,
        )
    with _place(out, overwrite) as folder:
        result = relax_and_run(atoms, calculator, folder, config, judge)

    # if a guard had stopped the relaxation, it would have raised its error already
    assert result.mean_temperature is not None
    say(
        f"{result.formula}: {_state(result, config)}; "
        f"NVE {config.steps} x {config.time_step} fs at {result.mean_temperature:.0f} K: "
        f"drift {result.drift_mev_per_atom_ps:.3f} meV/atom/ps, "
        f"rms {result.rms_mev_per_atom:.3f} meV/atom; {out / TRAJECTORY_FILE}"
    )


def learn(
    model: ModelReference,
    structures: Annotated[Path, typer.Argument(help="structures to simulate, in any file of ASE")],
    out: Annotated[Path, typer.Argument(help="folder of the loop: model, data and report.html")],
    overrides: Overrides = None,
    recipe: Recipe = None,
    folder_hub: FolderHub = None,
    show_settings: Annotated[bool, settings_option("simulation.learn.config:LearnConfig")] = False,
) -> None:
    """Simulate, label structures that the model does not know, refit it, and repeat.

    Guarded dynamics stop when an error may be too large. An oracle labels a selection of the
    structures that were flagged, the readout is refitted in closed form, and the dynamics continue.
    The loop ends when no structure is flagged any more, or when all labels are spent. Run the same
    command again to continue an interrupted loop, or to continue with more labels.

    Example: evenfield learn evenfield-1 melt.extxyz runs/melt oracle=EMT labels=40
    temperatures=[900,1500] guard.force_radius=1.0
    """
    from ..core.settings import load_settings
    from ..data_pipelines.sources.ase_files import read_frames
    from ..model_zoo.hub.load import load
    from .learn.config import LearnConfig
    from .learn.loop import learn as learn_on_the_way

    config = load_settings(LearnConfig, recipe, overrides)
    frames = read_frames(structures)
    read = [name for name in (model, structures, recipe) if name is not None]
    done = learn_on_the_way(load(model, folder_hub), frames, out, config, inputs=read, say=say)
    if done.model is None:
        say(f"{done.ended}, with no label: the model stays as it is; {done.page}")
        return
    asked = done.rounds[-1]["labels"]
    say(f"{done.ended}: {asked} labels; model {done.model}, data {done.data}, page {done.page}")


@contextmanager
def _place(out: Path, overwrite: bool) -> Iterator[Path]:
    """Context manager that yields the folder to write into.

    If `out` holds an older result, the new one is written elsewhere and replaces it only when it is
    complete. Otherwise the frames are written to `out` directly, so that the user can follow a long
    run, and an interrupted run leaves its frames there.
    """
    from ..core.destination import contents, replace_folder
    from .dynamics import OWN_FILES, REQUEST_FILE

    if not overwrite or contents(out) is None:
        was_there = out.exists()
        try:
            yield out
        except BaseException:
            # nothing was computed: clear the folder, so that the next attempt is not refused
            if not _has_computed(out):
                with suppress(OSError):
                    (out / REQUEST_FILE).unlink()
                    if not was_there:
                        out.rmdir()
            raise
        return
    with replace_folder(out, OWN_FILES.__contains__) as folder:
        try:
            yield folder
        except BaseException as error:
            kept = _keep_failed(folder, _place_of_failed(out))
            if kept is not None and isinstance(error, EvenfieldError):
                error.remedy = f"its frames are in {kept}; {error.remedy}"
            elif kept is not None:
                say(f"the frames of the unfinished run are in {kept}")
            raise


def _has_computed(folder: Path) -> bool:
    """Whether a run has left results; if a guard stopped the relaxation, there is no trajectory."""
    from .dynamics import STOPPED_FILE, TRAJECTORY_FILE

    return any((folder / name).exists() for name in (TRAJECTORY_FILE, STOPPED_FILE))


def _place_of_failed(out: Path) -> Path:
    # resolved, because the path "." has an empty name
    place = out.resolve()
    return place.with_name(f"{place.name}-failed")


def _keep_failed(folder: Path, place: Path) -> Path | None:
    """Move the files of a failed run to `place`; returns `place`, or None if there are no files."""
    from ..core.destination import replace_folder
    from .dynamics import OWN_FILES

    if not _has_computed(folder):
        return None
    with replace_folder(place, OWN_FILES.__contains__) as kept:
        for name in OWN_FILES:
            if (folder / name).exists():
                (folder / name).rename(kept / name)
    return place


def _state(result: DynamicsResult, config: DynamicsConfig) -> str:
    """The outcome of the relaxation, in words."""
    force = f"largest force {result.largest_force:.3g} eV/A"
    steps = f"{result.relaxation_steps} steps"
    if result.relaxed:
        return f"relaxed in {steps} ({force})"
    return f"NOT relaxed after {steps}: {force}, fmax is {config.fmax:g}"
