"""Settings: frozen pydantic objects, filled from a YAML file and `key.sub=value` words.

`Settings` is the base of every configuration class. Commands build their settings with
`load_settings`. `settings_table.py` lists the keys of a class with their meaning.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from .errors import EvenfieldError
from .files import NAME_A_FILE, file_errors, special_kind
from .yaml_text import YamlTextError, read_yaml_text


# Problems that a message lists. A file with thousands of wrong keys is not a settings file, and
# searching for similar keys is slow.
MOST_PROBLEMS = 20
# ratio of matching characters (difflib) above which a wrong key counts as mistyped
SIMILAR = 0.7
# characters of a wrong value in a message
MOST_SHOWN = 200

# bounds of 64-bit integers
SMALLEST = -(2**63)
LARGEST = 2**63 - 1
# far below the limit of float32, 3.4e38, because torch refuses a rate that overflows when scaled
LARGEST_FLOAT = 1e30


class Settings(BaseModel):
    """Base of every configuration class: frozen, typed, without unknown keys.

    Validators in subclasses raise ValueError, with the key and the remedy in the text.
    `load_settings` turns it into a SettingsError.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """All keys that the class accepts, for messages and lists of settings."""
        return dict(cls.model_fields)

    @classmethod
    def alternatives(cls) -> dict[str, type[Settings]]:
        """Choice of a setting -> class whose keys are then read in place of some of this class."""
        return {}

    @field_validator("*")
    @classmethod
    def _numbers_fit(cls, value: Any) -> Any:
        """Refuse numbers that Python allows but torch, numpy or files cannot hold."""
        for number in _numbers_in(value):
            if isinstance(number, int) and not SMALLEST <= number <= LARGEST:
                raise ValueError(f"an integer is from {SMALLEST} to {LARGEST}")
            if abs(number) > LARGEST_FLOAT:
                raise ValueError(f"a number is from {-LARGEST_FLOAT:g} to {LARGEST_FLOAT:g}")
        return value

    @model_validator(mode="after")
    def _one_key_for_one_thing(self) -> Self:
        """Refuse keys of nested classes that this class fills in itself (see GivenBy)."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            for given in field.metadata:
                if isinstance(given, GivenBy) and isinstance(value, Settings):
                    given.refuse_others(name, value)
        return self


class GivenBy:
    """Marks keys of a nested class that the outer class fills in from its own keys.

    These keys are refused when the outer class is loaded, and `--settings` does not list them:

        finetune: Annotated[FineTuneConfig, GivenBy(seed="seeds")] = FineTuneConfig()
    """

    def __init__(self, **outer_keys: str) -> None:
        """Give each key of the nested class as KEY="outer key that takes its place"."""
        self.outer_keys = outer_keys

    def refuse_others(self, name: str, nested: Settings) -> None:
        """Raise ValueError if one of the keys differs from its default.

        name: field of the outer class. nested: its value.
        """
        for key, outer_key in self.outer_keys.items():
            default = type(nested).model_fields[key].get_default(call_default_factory=True)
            # compare with the default, because reloading a dumped configuration sets every key
            if getattr(nested, key) != default:
                raise ValueError(f"{name}.{key} has no effect here: set {outer_key}")


class SettingsError(EvenfieldError):
    """Settings cannot be used; the message names the key."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(
    cls: type[AnySettings], yaml_file: Path | None = None, overrides: list[str] | None = None
) -> AnySettings:
    """Build `cls` from an optional YAML file and `key.sub=value` words, which take precedence.

    yaml_file: path of a file, or the bare name of a recipe that is shipped for `cls`.
    overrides: words whose values are read as YAML: `steps=100`, `model.channels=64`,
        `elements=[H, O]`.

    A file may write a nested key in two ways: `model: {channels: 64}` or, only in its outermost
    mapping, `model.channels: 64`.

    Raises SettingsError for an unreadable file, an unknown key, or an invalid value.
    """
    tree = {}
    if yaml_file is not None:
        tree = _read_yaml(_find_recipe(Path(yaml_file), recipes_of(cls)))
    # words come after the file, so that they override it
    for word in overrides or []:
        _set_key(tree, word)

    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        problems = [_explain(problem, cls) for problem in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(f"and {len(found) - MOST_PROBLEMS} more")
        raise SettingsError("; ".join(problems), file=yaml_file) from None


def recipes_of(cls: type[Settings]) -> Path:
    """The folder of the recipes shipped for `cls`, next to the module of the class."""
    return Path(inspect.getfile(cls)).parent / "recipes"


def _read_yaml(path: Path) -> dict[str, Any]:
    # invalid bytes become a replacement character; YAML then refuses it and states its position
    with file_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree = read_yaml_text(text) or {}
    except YamlTextError as error:
        raise SettingsError(
            f"not valid YAML: {error.message}", file=path, remedy=error.remedy
        ) from None
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise SettingsError(f"a recipe is a mapping of keys to values, not a {kind}", file=path)
    return _nested(tree, path)


def _nested(tree: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Replace `a.b: value` in the outermost mapping by `a: {b: value}`.

    Keys further inside are left alone, because they may be names with dots that the user chose,
    such as levels of theory.
    """
    nested = {key: value for key, value in tree.items() if not _is_dotted(key)}
    for key in filter(_is_dotted, tree):
        *parents, leaf = key.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise SettingsError(
                    f"'{key}': {parent} is a value and has no keys below it", file=path
                )
        if leaf in inner:
            raise SettingsError(
                f"'{key}' is given twice, with and without dots", file=path, remedy="keep one"
            )
        inner[leaf] = tree[key]
    return nested


def _is_dotted(key: Any) -> bool:
    return isinstance(key, str) and "." in key


def _find_recipe(path: Path, recipes: Path) -> Path:
    """The path of a recipe: an existing file, or the shipped recipe with this bare name."""
    special = special_kind(path)
    if special is not None:
        raise SettingsError(f"is {special}, not a file", file=path, remedy=NAME_A_FILE)
    if path.is_file():
        return path
    shipped = {recipe.stem: recipe for recipe in sorted(recipes.glob("*.yaml"))}
    is_bare_name = path.name == str(path)
    if is_bare_name and path.stem in shipped:
        return shipped[path.stem]
    remedy = f"the package ships {', '.join(shipped)}" if shipped else "check the path"
    raise SettingsError("no such recipe file", file=path, remedy=remedy)


def _set_key(tree: dict[str, Any], word: str) -> None:
    """Set the value of a word `a.b=value` in a nested dictionary."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise SettingsError(f"'{word}'", remedy="write a setting as key=value, as in seed=1")

    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"'{word}': {parent} is a value and has no keys below it")

    # `key=` clears a setting, as `key:` does in YAML
    try:
        tree[leaf] = read_yaml_text(value) if value else None
    except YamlTextError:
        raise SettingsError(
            f"'{word}': the value is not valid YAML", remedy="close its brackets and quotes"
        ) from None


def _explain(problem: Mapping[str, Any], cls: type[Settings]) -> str:
    key, known = _key_and_siblings(cls, problem["loc"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        meant = _meant(cls, key, known)
        suggestion = f"; did you mean {meant}?" if meant else ""
        if any(_is_dotted(part) for part in problem["loc"]):
            # a guess would only repeat the same key
            suggestion = "; below another key, dots do not nest: give each part a line of its own"
        return f"unknown key '{key}' (known here: {', '.join(known)}){suggestion}"
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind == "value_error":
        # raised by a validator of a settings class, whose text includes the remedy
        text = str(problem["ctx"]["error"])
        return _with_full_keys(text, cls, problem["loc"], key) if key else text
    return f"{key or cls.__name__}: {problem['msg']} (got {_short(problem['input'])})"


def _short(value: Any) -> str:
    """The repr of a value for a message, cut to MOST_SHOWN characters."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _with_full_keys(
    text: str, cls: type[Settings], location: tuple[int | str, ...], key: str
) -> str:
    """The text of a nested class's validator, with keys as the user has to write them."""
    _, inner = _key_and_siblings(cls, (*location, ""))
    names = "|".join(map(re.escape, inner))
    spelt = re.sub(rf"(?<![\w.])(?:{names})(?=[.=])", rf"{key}.\g<0>", text) if names else text
    return spelt if spelt != text else f"{key}: {text}"


def _meant(cls: type[Settings], key: str, siblings: list[str]) -> str | None:
    """The full key that the user may have meant, at the same place or deeper; None without any."""
    # imported here, because settings_table imports this module
    from .settings_table import groups_of

    *parents, leaf = key.split(".")
    near = get_close_matches(leaf, siblings, n=1, cutoff=SIMILAR)
    if near:
        return ".".join([*parents, *near])

    by_leaf: dict[str, str] = {}
    for group in groups_of(cls):
        for row in group.rows:
            # of several keys with the same name, keep the outermost
            by_leaf.setdefault(row.key.rpartition(".")[2], row.key)
    near = get_close_matches(leaf, by_leaf, n=1, cutoff=SIMILAR)
    return by_leaf[near[0]] if near else None


def _numbers_in(value: Any) -> Iterator[int | float]:
    """All numbers in the value of a field; nested settings check their own numbers."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict):
        yield from _numbers_in([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _numbers_in(item)


def _key_and_siblings(
    cls: type[Settings], location: tuple[int | str, ...]
) -> tuple[str, list[str]]:
    """Convert a location of a pydantic error to a dotted key, and list the known keys next to it.

    For a union of settings, pydantic's location contains the tag or the class name of the member
    that it tried. Users never write it, so the dotted key leaves it out.
    """
    key: list[str] = []
    known: list[str] = []
    classes = [cls]
    takes_any_key = False
    for part in location:
        chosen = [member for member in classes if part in _names_in_a_union(member)]
        if len(classes) > 1 and chosen:
            classes = chosen
            continue
        if part == "[key]":
            # pydantic's marker after a key of a dictionary
            continue

        key.append(str(part))
        if isinstance(part, int) or takes_any_key:
            # below an index or a key that the user chose, the class stays the same
            takes_any_key = False
            continue

        # if the member of a union is not known yet, the keys of all members are allowed
        keys: dict[str, FieldInfo] = {}
        inner_classes: list[type[Settings]] = []
        for member in classes:
            members_keys = member.known_keys()
            keys |= members_keys
            field = members_keys.get(str(part))
            if field is not None:
                inner_classes += _settings_in(field.annotation)
                # `sources.NAME.licence`: the user picks the name
                takes_any_key = bool(inner_classes) and get_origin(field.annotation) is dict
        known = sorted(keys)
        classes = inner_classes
    return ".".join(key), known


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes in an annotation: itself, or members of a union, list or dict."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    found = []
    for argument in get_args(annotation):
        found += _settings_in(argument)
    return found


def _names_in_a_union(member: type[Settings]) -> set[Any]:
    """The names that pydantic may use for a member of a union: its class name and its tags."""
    names = {member.__name__}
    for field in member.model_fields.values():
        if get_origin(field.annotation) is Literal:
            names |= set(get_args(field.annotation))
    return names
