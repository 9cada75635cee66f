"""Settings: frozen pydantic objects, filled from YAML and `key.sub=value` words; an unknown key is an error."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Base of every config class: frozen, typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SettingsError(ValueError):
    """A config that cannot be used; the message names the key and the mend."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(
    cls: type[AnySettings], yaml_file: Path | None = None, overrides: list[str] | None = None
) -> AnySettings:
    """Build `cls` from a YAML file (optional) with `key.sub=value` words laid over it.

    Values are read as YAML (`steps=100`, `model.channels=64`, `elements=[H, O]`).  Raises SettingsError for an
    unreadable file, an unknown key or a value of the wrong kind.
    """
    tree = _read_yaml(_find_recipe(Path(yaml_file), recipes_of(cls))) if yaml_file else {}
    for word in overrides or []:
        _set_key(tree, word)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error, cls, yaml_file)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise SettingsError(
            f"{path}: a recipe is a mapping of keys to values, not a {type(tree).__name__}"
        )
    return tree


def recipes_of(cls: type[Settings]) -> Path:
    """The folder of the recipes that come with the package for a config class: beside its module."""
    return Path(inspect.getfile(cls)).parent / "recipes"


def _find_recipe(path: Path, recipes: Path) -> Path:
    """A recipe file, or one of those that come with the package by its bare name."""
    if path.is_file():
        return path
    shipped = {recipe.stem: recipe for recipe in sorted(recipes.glob("*.yaml"))}
    if path.name == str(path) and path.stem in shipped:
        return shipped[path.stem]
    raise SettingsError(
        f"{path}: no such recipe file, and none of the shipped ones: {', '.join(shipped)}"
    )


def _set_key(tree: dict[str, Any], word: str) -> None:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise SettingsError(
            f"'{word}': write an override as key=value, for example model.channels=64"
        )
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"'{word}': {parent} is a value, it has no key below it")
    try:
        tree[leaf] = yaml.safe_load(value) if value else None
    except yaml.YAMLError:
        raise SettingsError(
            f"'{word}': the value is not valid YAML: close its brackets and quotes"
        ) from None


def _explain(error: ValidationError, cls: type[Settings], yaml_file: Path | None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "extra_forbidden":
            known = ", ".join(_keys_beside(cls, problem["loc"]))
            lines.append(f"unknown key '{key}' (known here: {known})")
        elif problem["type"] == "missing":
            lines.append(f"key '{key}' is missing")
        elif (
            problem["type"] == "value_error"
        ):  # raised by a validator of ours, which names key and mend
            lines.append(
                f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
            )
        else:
            lines.append(f"{key or cls.__name__}: {problem['msg']} (got {problem['input']!r})")
    where = f"{yaml_file}: " if yaml_file else ""
    return where + "; ".join(lines)


def _keys_beside(cls: type[Settings], location: tuple[int | str, ...]) -> list[str]:
    """The keys that stand beside a wrong one, found by walking down the config classes."""
    for part in location[:-1]:
        field = cls.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return []
        cls = annotation
    return sorted(cls.model_fields)
