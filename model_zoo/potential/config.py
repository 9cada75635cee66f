"""The settings of a model: those of its network, of its readout, and what the data fixed.

The network's settings are a tagged union: the key `architecture` chooses the class that the other
keys are read by. For the user all keys are on one level (`model.architecture=schnet
model.channels=128`), and stored models have them on one level too.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    Field,
    SerializationInfo,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from ...core.settings import Settings
from ...data_pipelines.physics.config import PhysicsConfig
from ..network.architectures import ARCHITECTURES, DEFAULT_ARCHITECTURE, config_class
from ..network.interface import MAX_ATOMIC_NUMBER, NetworkConfig
from .charges import HIDDEN_SIZE


class ModelConfig(Settings):
    """What a user chooses. All keys of the network's own config are accepted here as well.

    `size` is accepted too: a name from the network's `SIZES`, which sets some keys that are not
    given. It is not stored; the keys that it sets are.
    """

    network: SerializeAsAny[NetworkConfig]
    readout_size: int = Field(
        default=64, gt=0, le=8192, description="features that the energy is linear in"
    )
    repulsion: bool = Field(default=True, description="ZBL repulsion of cores at short distance")
    charges: bool = Field(
        default=False,
        description="charges that follow the surroundings, learned through their Coulomb energy",
    )
    charge_width: float = Field(
        default=1.0, ge=0.3, le=5, description="standard deviation of the Gaussian charges, A"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_network(cls, given: Any, info: ValidationInfo) -> Any:
        """Move the keys of the network into a config of the class that `architecture` names."""
        if not isinstance(given, dict) or isinstance(given.get("network"), NetworkConfig):
            return given

        own_keys = set(cls.model_fields) - {"network"}
        own = {key: value for key, value in given.items() if key in own_keys}
        of_network = {key: value for key, value in given.items() if key not in own_keys}

        of_network.setdefault("architecture", DEFAULT_ARCHITECTURE)
        network_config = config_class(of_network["architecture"])
        if "size" in of_network:
            name = of_network.pop("size")
            if name not in network_config.SIZES:
                known = ", ".join(network_config.SIZES)
                raise ValueError(f"size: unknown size {name!r}: choose one of {known}")
            of_network = network_config.SIZES[name] | of_network

        # an unknown key is reported with those of the chosen network
        unknown = sorted(set(of_network) - set(network_config.model_fields))
        if unknown and of_network["architecture"] != DEFAULT_ARCHITECTURE:
            known = ", ".join(sorted({*network_config.model_fields, *own_keys}))
            raise ValueError(
                f"{of_network['architecture']} has no setting '{unknown[0]}': it has {known}"
            )
        # pydantic does not pass on that a stored config is read strictly, so the caller tells it
        strict = bool(info.context and info.context.get("strict"))
        own["network"] = network_config.model_validate(of_network, strict=strict)
        return own

    @model_validator(mode="after")
    def _check_charges(self) -> Self:
        if "charge_width" in self.model_fields_set and not self.charges:
            raise ValueError("charge_width belongs to charges: set charges=true too")
        return self

    @model_serializer(mode="wrap")
    def _write_network(
        self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """All keys on one level, as they are read."""
        own = serialize(self)
        of_network = own.pop("network", {})
        # models without physics are stored as they were before there was any
        if own.get("physics", "") is None:
            del own["physics"]
        if own.get("charges", "") is False:
            del own["charges"]
            own.pop("charge_width", None)
        return of_network | own

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """The keys of the default network and of the model."""
        own = {key: field for key, field in cls.model_fields.items() if key != "network"}
        return dict(config_class(DEFAULT_ARCHITECTURE).model_fields) | own

    @classmethod
    def alternatives(cls) -> dict[str, type[Settings]]:
        """The keys of the other networks."""
        others = [tag for tag in ARCHITECTURES if tag != DEFAULT_ARCHITECTURE]
        return {f"architecture={tag}": config_class(tag) for tag in others}

    @property
    def cutoff(self) -> float:
        """A; atoms further apart are not neighbours."""
        return self.network.cutoff


class PotentialConfig(ModelConfig):
    """The model, and what was fixed from the training data."""

    levels_of_theory: list[str] = Field(
        default=["default"], min_length=1, description="one head for each"
    )
    num_neighbours: float = Field(
        default=16.0, gt=0, description="mean number of neighbours in the data"
    )
    physics: PhysicsConfig | None = Field(
        default=None,
        description="what was subtracted from the labels, and is added to predictions",
    )

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """Without physics, which only data sets set."""
        return {key: field for key, field in super().known_keys().items() if key != "physics"}

    @field_validator("physics", mode="before")
    @classmethod
    def _read_physics(cls, given: Any) -> Any:
        """Read settings as they are stored; pydantic's strict mode wants an object."""
        return PhysicsConfig.model_validate(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _has_charges_once(self) -> Self:
        if self.charges and self.physics is not None and self.physics.coulomb is not None:
            raise ValueError(
                "charges: the labels of the data set are minus the energy of charges already; "
                "leave charges out, or convert the data without physics.coulomb"
            )
        return self

    @property
    def num_weights(self) -> int:
        """Numbers in the state of a potential, counted without building it."""
        num_heads = len(self.levels_of_theory)
        num_rows = MAX_ATOMIC_NUMBER + 1
        hidden = (self.network.num_features + 1) * self.readout_size
        # the weights shared by all elements, and those of each
        weights = num_heads * (num_rows + 1) * self.readout_size
        # E0 and radius of each element, and the scale
        constants = num_heads * (2 * num_rows + 1)
        # a hidden layer of their own, its weights, and a charge of each element
        charges = (self.network.num_features + 2) * HIDDEN_SIZE + num_rows if self.charges else 0
        return self.network.num_weights + hidden + weights + constants + charges

    @classmethod
    def from_stored(cls, content: dict[str, Any]) -> Self:
        """The config of a stored model, in which every value has the type that was written.

        Settings of a user are read with more patience: 1e-3 is a text in YAML. In a model folder
        "8192" was not written by us. Raises pydantic's ValidationError.
        """
        return cls.model_validate(content, strict=True, context={"strict": True})
