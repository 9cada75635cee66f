"""The config of a pretraining run, made from the config classes of its parts.

Every setting has a rule for what a resumed run does with a changed value (`RESUME_RULES`). The rule
is declared with the field, or here for settings of other folders. `resume_rules` collects all
rules.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from ..core.settings import Settings
from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.stream.config import StreamConfig
from ..data_pipelines.stream.mixture import MixingConfig
from ..model_zoo.potential.config import ModelConfig
from .callbacks.adaptive import AdaptiveConfig
from .callbacks.average import AverageConfig
from .callbacks.guards import GuardConfig
from .callbacks.metrics import LoggingConfig
from .checkpoints.checkpoints import CheckpointConfig
from .loop.element_sharing import ElementSharingConfig
from .loop.engine import EngineConfig
from .loop.level_sharing import LevelSharingConfig
from .loop.loss import LossConfig
from .loop.optimizer import OptimizerConfig
from .loop.schedule import ScheduleConfig
from .loop.train_module import ComputeConfig


RESUME_RULES = {
    "applied": "takes effect from the resumed step on",
    "refused": "was fixed when the run began",
    "not_from_off": "may be changed or switched off, but the checkpoint lacks what its start needs",
    "by_content": "may be another path, but to the same data",
}

STREAM_RULES: JsonDict = {
    # A run that ran out of memory must be able to resume with a smaller budget. Structures in the
    # few windows that are open at the resume may then be seen twice, or not at all, in their epoch.
    "edge_budget": "applied",
    "atom_budget": "applied",
    "oversized": "applied",
    "look_ahead": "applied",
    "lanes": "applied",
    # positions in the stream are counted in windows, whose contents depend on these
    "window_blocks": "refused",
    "seed": "refused",
    # weights were fitted when the run began and come from the checkpoint
    "weights": {
        "beta": "refused",
        "over": "refused",
        "min_effective_share": "refused",
        "sampling": "refused",
        "loss": "applied",
    },
}

MIXING_RULES: JsonDict = {
    "temperature": "applied",
    "shares": "applied",
    "count": "applied",
    # positions are stored per level, but a checkpoint without level shares has none
    "level_shares": "refused",
}


class PretrainConfig(Settings):
    """All settings of a run; saved in the run folder and in every checkpoint."""

    data: str | list[str] = Field(
        description="folder of a converted data set, or several to mix",
        json_schema_extra={"resume": "by_content"},
    )
    out: str = Field(
        description="run folder; its name is the name of the model",
        json_schema_extra={"resume": "applied"},  # the checkpoint is searched for there
    )
    start_from: str | None = Field(
        default=None,
        description="model whose weights the run begins with, as a folder, a name of the zoo or "
        "owner/name@revision; levels of theory take over their heads by name",
        json_schema_extra={"resume": "refused"},
    )
    licence: str | None = Field(
        default=None,
        description="licence of the weights; needed to publish",
        json_schema_extra={"resume": "applied"},
    )
    default_level: str | None = Field(
        default=None,
        description="level of theory that the model uses when none is asked for; a model of "
        "several levels asks its users when this is not set",
        json_schema_extra={"resume": "applied"},
    )
    seed: int = Field(
        default=0,
        description="of the initial weights; stream.seed orders the data",
        json_schema_extra={"resume": "refused"},
    )
    max_steps: int = Field(
        default=1000,
        gt=0,
        description="optimizer steps",
        json_schema_extra={"resume": "applied"},
    )
    accumulation: int = Field(
        default=1,
        gt=0,
        description="batches of a step, for each rank or virtual rank of the stream",
        json_schema_extra={"resume": "applied"},
    )
    evaluate_every: int = Field(
        default=200,
        gt=0,
        description="steps between validations",
        json_schema_extra={"resume": "applied"},
    )
    evaluate_structures: int = Field(
        default=200,
        gt=0,
        description="most structures in a validation during the run",
        json_schema_extra={"resume": "applied"},
    )
    # mypy cannot see that a validator of ModelConfig fills in the network
    model: ModelConfig = Field(
        default=ModelConfig(),  # type: ignore[call-arg]
        json_schema_extra={"resume": "refused"},
    )
    stream: StreamConfig = Field(default=StreamConfig(), json_schema_extra={"resume": STREAM_RULES})
    mixing: MixingConfig = Field(default=MixingConfig(), json_schema_extra={"resume": MIXING_RULES})
    loss: LossConfig = LossConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()
    level_sharing: LevelSharingConfig = LevelSharingConfig()
    element_sharing: ElementSharingConfig = ElementSharingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    compute: ComputeConfig = ComputeConfig()
    engine: EngineConfig = EngineConfig()
    average: AverageConfig = AverageConfig()
    guards: GuardConfig = GuardConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _losses_can_be_compared(self) -> Self:
        if self.guards.spike and self.loss.learn_noise:
            raise ValueError(
                "guards.spike compares losses by their ratio, and with loss.learn_noise they fall "
                "below zero: set only one of them"
            )
        return self

    @model_validator(mode="after")
    def _matrices_stay_whole(self) -> Self:
        stage = self.engine.zero_stage
        if stage and self.optimizer.name == "soap":
            raise ValueError(
                f"engine.zero_stage={stage} cuts matrices into parts, which soap needs whole: set "
                "optimizer.name=adamw, or engine.zero_stage=0, since a potential is small enough "
                "for every rank"
            )
        return self

    def open_data(self) -> Collection:
        """Open the data sets of the run."""
        return Collection([self.data] if isinstance(self.data, str) else self.data)

    def saved(self) -> dict[str, Any]:
        """The settings as stored in checkpoints and models, without `data` and `out`."""
        return self.model_dump(mode="json", exclude={"data", "out"})


def resume_rules(cls: type[Settings] = PretrainConfig, prefix: str = "") -> dict[str, str]:
    """Map the key of every setting, or of a whole section, to its rule, a key of RESUME_RULES."""
    rules: dict[str, str] = {}
    for name, field in cls.model_fields.items():
        declared = _declared_rule(field)
        if declared is not None:
            rules |= _spelled_out(declared, f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            rules |= resume_rules(field.annotation, f"{prefix}{name}.")
    return rules


def _declared_rule(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    return extra.get("resume") if isinstance(extra, dict) else None


def _spelled_out(declared: Any, key: str) -> dict[str, str]:
    """Expand a declared rule, or a tree of rules, to a flat mapping with full keys."""
    if isinstance(declared, str):
        return {key: declared}
    rules: dict[str, str] = {}
    for name, rule in declared.items():
        rules |= _spelled_out(rule, f"{key}.{name}")
    return rules
