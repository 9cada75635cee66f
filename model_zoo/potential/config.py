"""The settings of a model: network, readout, and the values derived from the training data.

The settings of the network are a tagged union: the key `architecture` chooses the class that reads
the other keys. Users write all keys on one level (`model.architecture=schnet model.channels=128`).
Stored models also have all keys on one level.
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
    """The settings that a user chooses. All keys of the network's config are accepted here too.

    `size` is also accepted. It is a name from the network's `SIZES` and supplies defaults for some
    keys. The resulting keys are stored; `size` itself is not.
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
        """Move the keys of the network into the config class that `architecture` names."""
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

        # the message about an unknown key lists the keys of the chosen network
        unknown = sorted(set(of_network) - set(network_config.model_fields))
        if unknown and of_network["architecture"] != DEFAULT_ARCHITECTURE:
            known = ", ".join(sorted({*network_config.model_fields, *own_keys}))
            raise ValueError(
                f"{of_network['architecture']} has no setting '{unknown[0]}': it has {known}"
            )
        # pydantic does not pass strict mode on to this validator, so the context carries it
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
        """Write all keys on one level, as they are read."""
        own = serialize(self)
        of_network = own.pop("network", {})
        # models without physics or charges keep the stored form that predates these settings
        if own.get("physics", "") is None:
            del own["physics"]
        if own.get("charges", "") is False:
            del own["charges"]
            own.pop("charge_width", None)
        fields = type(self.network).model_fields
        for name in self.network.ADDED_LATER:
            if of_network.get(name) == fields[name].default:
                del of_network[name]
        return of_network | own

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """The keys of the model and of the default network."""
        own = {key: field for key, field in cls.model_fields.items() if key != "network"}
        return dict(config_class(DEFAULT_ARCHITECTURE).model_fields) | own

    @classmethod
    def alternatives(cls) -> dict[str, type[Settings]]:
        """The config classes of the other networks, by the setting that selects them."""
        others = [tag for tag in ARCHITECTURES if tag != DEFAULT_ARCHITECTURE]
        return {f"architecture={tag}": config_class(tag) for tag in others}

    @property
    def cutoff(self) -> float:
        """A; atoms further apart are not neighbours."""
        return self.network.cutoff


class PotentialConfig(ModelConfig):
    """The settings of a model, and the values derived from its training data."""

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
        """The keys that a user may set: all but `physics`, which comes from the data set."""
        return {key: field for key, field in super().known_keys().items() if key != "physics"}

    @field_validator("physics", mode="before")
    @classmethod
    def _read_physics(cls, given: Any) -> Any:
        """Read the stored form, a dictionary. Pydantic's strict mode accepts only an object."""
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
        """How many numbers the state of a potential holds, counted without building it."""
        num_heads = len(self.levels_of_theory)
        num_rows = MAX_ATOMIC_NUMBER + 1
        hidden = (self.network.num_features + 1) * self.readout_size
        # readout weights: one vector shared by all elements, and one for each element
        weights = num_heads * (num_rows + 1) * self.readout_size
        # E0 and repulsion radius of each element, and the scale
        constants = num_heads * (2 * num_rows + 1)
        # a separate hidden layer, its output weights, and one charge per element
        charges = (self.network.num_features + 2) * HIDDEN_SIZE + num_rows if self.charges else 0
        return self.network.num_weights + hidden + weights + constants + charges

    @classmethod
    def from_stored(cls, content: dict[str, Any]) -> Self:
        """Read the config of a stored model strictly: every value must have its exact type.

        User settings are converted more leniently, since YAML reads 1e-3 as a string. A string such
        as "8192" in a model folder, however, was not written by evenfield. Raises pydantic's
        ValidationError.
        """
        return cls.model_validate(content, strict=True, context={"strict": True})
