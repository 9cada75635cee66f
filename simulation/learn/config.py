"""Settings of the loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...data_pipelines.enrich.label_oracles import OracleConfig
from ...finetune.closed_form.design_rows import RefitConfig
from ...finetune.gradient.config import GradientConfig
from ..guard import GuardConfig


class LearnConfig(OracleConfig):
    """Where simulations go, what stops them, who labels, and what may be spent."""

    level_of_theory: str | None = Field(
        default=None,
        description="of the labels; by default the name of the oracle. One that the model has goes "
        "on from its head",
    )
    labels: int = Field(default=40, gt=0, description="most labels that the oracle is asked for")
    minutes: float | None = Field(
        default=None, gt=0, description="no round begins after so many minutes of work"
    )
    timeout: float = Field(
        default=3600.0, gt=0, description="s; a label that takes longer is given up"
    )
    slurm: list[str] | None = Field(
        default=None,
        description="options of sbatch, such as [--partition=cpu, --time=04:00:00]; the labels of "
        "a round are then the tasks of a job array, and [] takes the defaults of the cluster. When "
        "not given, they are computed here, one after the other",
    )
    largest_force: float = Field(
        default=50.0, gt=0, description="eV/A; labels with a larger force are not learned from"
    )
    initial: int = Field(
        default=8,
        ge=0,
        description="labels of rattled and strained copies of the structures, before the first "
        "simulation; 0 for a level of theory whose uncertainty the model knows",
    )
    initial_rattle: tuple[float, float] = Field(
        default=(0.02, 0.2), description="bounds of the standard deviation of their moves, A"
    )
    initial_strain: float = Field(
        default=0.02, ge=0, le=0.1, description="standard deviation of the strain of their cells"
    )
    batch: int = Field(default=8, gt=0, description="labels in a round")
    choose: Literal["determinant", "farthest", "committee", "random"] = Field(
        default="determinant",
        description="how structures are chosen among those that simulations met: by how much they "
        "add to the determinant of the information matrix of the features, by the distance from "
        "those that have labels, by the disagreement of the committee, or at random",
    )
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        default=[300.0, 600.0, 900.0],
        min_length=1,
        description="K; each structure is simulated at each of them (Langevin)",
    )
    pressures: list[Annotated[float, Field(ge=-100, le=1000)]] = Field(
        default=[],
        description="GPa; each structure is simulated at each of them, in a cell that changes its "
        "volume and keeps its shape. At constant cell without any, and where a structure is not "
        "periodic in all directions. Negative ones pull",
    )
    friction: float = Field(default=0.01, gt=0, description="1/fs, of the thermostat")
    time_step: float = Field(default=2.0, gt=0, description="fs")
    steps: int = Field(
        default=500, gt=0, description="steps of each simulation, over all rounds together"
    )
    every: int = Field(
        default=10, gt=0, description="steps between two structures that may be chosen"
    )
    guard: GuardConfig = GuardConfig(force_radius=1.0)
    strategy: Literal["refit", "wide"] = Field(
        default="refit",
        description="refit: readout and E0 in closed form; wide: with random features appended",
    )
    refit: RefitConfig = RefitConfig()
    when_stalled: Literal["none", "full", "lora"] = Field(
        default="none",
        description="strategy that a model is trained with, from the model that was given and on "
        "all labels, when the refit has stalled; it is taken where it is better on labels that it "
        "has not learned. full: all parameters; lora: low-rank adapters and the readout; none: the "
        "refit goes on",
    )
    stall_rounds: int = Field(
        default=3,
        gt=0,
        description="the refit has stalled when in so many rounds, one after the other, the error "
        "of the forces (RMS) on new labels before they were learned was not below the lowest of "
        "the rounds before them",
    )
    gradient: GradientConfig = GradientConfig()
    seed: int = Field(default=0, ge=0, description="of every random draw")

    @property
    def level(self) -> str:
        """Level of theory of the labels."""
        return self.level_of_theory or self.level_of_oracle
